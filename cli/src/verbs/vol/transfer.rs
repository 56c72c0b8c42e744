//! `vol-upload` and `vol-download`.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use cenote_engine::{Transfer, VolumeInfo};
use clap::Args;

use super::VolumeArgument;
use crate::consent::Level;
use crate::context::Context;
use crate::engine_errors::of_io;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out::{human, parse_size};
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Which part is moved.
#[derive(Args, Clone, Debug)]
struct Part {
    /// First byte in the volume
    #[arg(long, value_name = "SIZE", default_value = "0")]
    offset: String,
    /// Bytes to move; all when left out
    #[arg(long, value_name = "SIZE")]
    length: Option<String>,
    /// Keep stretches of zeroes as holes
    #[arg(long)]
    sparse: bool,
}

impl Part {
    fn transfer(&self) -> Result<Transfer> {
        Ok(Transfer {
            offset: parse_size(&self.offset)?,
            length: self.length.as_deref().map(parse_size).transpose()?,
            sparse: self.sparse,
        })
    }
}

/// Write the content of a file into a volume
#[derive(Args, Debug)]
pub(super) struct VolUpload {
    #[command(flatten)]
    volume: VolumeArgument,
    /// The file; - is standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    #[command(flatten)]
    part: Part,
}

impl Verb for VolUpload {
    const NAME: &'static str = "vol-upload";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Fill a volume from a file",
            "cenote vol-upload disk.raw image.raw --yes",
        ),
        example(
            "From another program, keeping holes",
            "cat image.raw | cenote vol-upload disk.raw - --sparse --yes",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let transfer = self.part.transfer()?;
        node.volume_ensure_changeable(&volume.id(), &[])?;
        let mut source = open_source(&self.file)?;
        let shown = volume.path.display().to_string();
        let mut plan = Plan::new(Self::NAME, &volume.name).change_with(
            "overwrite",
            &shown,
            format!("from byte {} with {}", transfer.offset, self.file.display()),
        );
        if !is_blank(&volume) {
            plan = plan.asks(
                Level::Ask,
                format!("overwrite what is in volume {}", volume.id()),
            );
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let moved = context.long(format!("uploading {}", volume.name), |progress| {
            node.volume_upload(&volume.id(), &mut source, &transfer, progress)
        })?;
        let message = format!("{} uploaded into vol {}", human(moved), volume.name);
        context.done(&Done::new("volume", "uploaded", &volume.name, message).at(shown))
    }
}

/// Whether a raw volume's file has nothing but holes, so that nothing can be lost.
fn is_blank(volume: &VolumeInfo) -> bool {
    volume.format == "raw"
        && File::open(&volume.path).is_ok_and(|file| {
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)) == Err(rustix::io::Errno::NXIO)
        })
}

fn open_source(path: &Path) -> Result<File> {
    let opened = if path == Path::new("-") {
        io::stdin().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::open(path)
    };
    opened.map_err(|error| {
        Failure::new(of_io(&error), format!("cannot read '{}'", path.display()))
            .fix("name a file you may read, or - for standard input")
            .next("cenote vol-upload --help")
            .source(error)
    })
}

/// Write the content of a volume into a file
#[derive(Args, Debug)]
pub(super) struct VolDownload {
    #[command(flatten)]
    volume: VolumeArgument,
    /// The file; - is standard output
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    #[command(flatten)]
    part: Part,
}

impl Verb for VolDownload {
    const NAME: &'static str = "vol-download";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Save a volume",
            "cenote vol-download disk.raw copy.raw --sparse",
        ),
        example(
            "Compress it on the way",
            "cenote vol-download disk.raw - | gzip > disk.gz",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let volume = self.volume.find(context, &node)?;
        let transfer = self.part.transfer()?;
        let shown = self.file.display().to_string();
        let mut plan = Plan::new(Self::NAME, &volume.name).change_with(
            "write",
            &shown,
            format!("the content of {}", volume.path.display()),
        );
        let standard_output = self.file == Path::new("-");
        let there = !standard_output && self.file.exists();
        if there {
            plan = plan.asks(Level::Ask, format!("overwrite {shown}"));
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        let mut target = if standard_output {
            output_stream()?
        } else {
            create_target(&self.file)?
        };
        let moved = context.long(format!("downloading {}", volume.name), |progress| {
            node.volume_download(&volume.id(), &mut target, &transfer, progress)
        });
        if moved.is_err() && !standard_output && !there {
            // Half a file would look like a whole one.
            let _ = std::fs::remove_file(&self.file);
        }
        let moved = moved?;
        if standard_output {
            return Ok(());
        }
        let message = format!("{} downloaded from vol {}", human(moved), volume.name);
        context.done(&Done::new("volume", "downloaded", &volume.name, message).at(shown))
    }
}

fn output_stream() -> Result<File> {
    if io::stdout().is_terminal() {
        return Err(
            Failure::new(Code::E0002, "will not write a disk to a terminal")
                .fix("send standard output into a file or another program")
                .next("cenote vol-download --help"),
        );
    }
    let duplicate = io::stdout().as_fd().try_clone_to_owned();
    duplicate.map(File::from).map_err(|error| {
        Failure::new(Code::E0101, "cannot use standard output")
            .next("cenote vol-download --help")
            .source(error)
    })
}

fn create_target(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create(true).truncate(true).open(path);
    opened.map_err(|error| {
        let fix = match error.kind() {
            ErrorKind::PermissionDenied => "choose a folder you may write",
            ErrorKind::IsADirectory => "name a file, not a folder",
            _ => "choose another file",
        };
        Failure::new(of_io(&error), format!("cannot write '{}'", path.display()))
            .fix(fix)
            .next("cenote vol-download --help")
            .source(error)
    })
}
