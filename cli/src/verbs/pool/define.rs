//! Commands that bring new pools into being.

use std::path::PathBuf;

use cenote_model::Document as _;
use cenote_model::Name;
use cenote_model::pool::{
    Pool, PoolFormat, PoolKind, PoolSource, PoolTarget, SourceDevice, SourceDir, SourceFormat,
    SourceHost, SourceProtocol,
};
use clap::Args;

use super::{BuildChoice, plan_build, target_of};
use crate::context::Context;
use crate::document;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out;
use crate::plan::Plan;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::Done;

/// Define a pool from a document, or change the definition of a stopped one
#[derive(Args, Debug)]
pub(super) struct PoolDefine {
    /// The document; - is standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Refuse what is not known instead of keeping it without effect
    #[arg(long)]
    validate: bool,
}

impl Verb for PoolDefine {
    const NAME: &'static str = "pool-define";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "Check a document without defining anything",
            "cenote pool-define pool.xml --validate --dry-run",
        ),
        example("Define a pool", "cenote pool-define pool.xml"),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let text = document::read(&self.file)?;
        let pool: Pool = document::parse(context, &text, self.validate)?;
        let message = format!("Pool {} defined from {}", pool.name, self.file.display());
        define(context, Self::NAME, &pool, message)
    }
}

/// What a pool is, as arguments.
#[derive(Args, Clone, Debug)]
struct PoolArguments {
    /// Name of the pool
    name: String,
    /// dir, fs, netfs or logical
    #[arg(value_name = "TYPE", id = "type")]
    kind: PoolKind,
    /// Print the document and do nothing
    #[arg(long)]
    print_xml: bool,
    /// Server of a network file system
    #[arg(long, value_name = "HOST")]
    source_host: Option<String>,
    /// Exported directory on the server
    #[arg(long, value_name = "PATH")]
    source_path: Option<String>,
    /// Block device of the file system or volume group; may be repeated
    #[arg(long, value_name = "DEVICE")]
    source_dev: Vec<String>,
    /// Volume group
    #[arg(long, value_name = "NAME")]
    source_name: Option<String>,
    /// Folder of the volumes
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    target: Option<String>,
    /// Format of the source
    #[arg(long, value_name = "FORMAT")]
    source_format: Option<PoolFormat>,
    /// Version of the network file system's protocol
    #[arg(long, value_name = "VERSION")]
    source_protocol_ver: Option<String>,
}

impl PoolArguments {
    fn document(&self) -> Result<Pool> {
        let name = Name::new(&self.name).map_err(|error| {
            Failure::new(
                Code::E0308,
                format!("'{}' cannot be the name of a pool", self.name),
            )
            .why(error.to_string())
            .fix("choose another name")
            .next("cenote help names")
        })?;
        let source = PoolSource {
            hosts: self
                .source_host
                .iter()
                .map(|host| host_of(host))
                .collect::<Result<_>>()?,
            devices: self.source_dev.iter().map(|path| device_of(path)).collect(),
            dir: self.source_path.clone().map(|path| SourceDir {
                path,
                ..SourceDir::default()
            }),
            name: self.source_name.clone(),
            format: self.source_format.map(|kind| SourceFormat {
                kind,
                ..SourceFormat::default()
            }),
            protocol: self
                .source_protocol_ver
                .clone()
                .map(|version| SourceProtocol {
                    version,
                    ..SourceProtocol::default()
                }),
            ..PoolSource::default()
        };
        let pool = Pool {
            kind: self.kind,
            name,
            source: (source != PoolSource::default()).then_some(source),
            target: PoolTarget {
                path: self.target.clone(),
                ..PoolTarget::default()
            },
            ..Pool::default()
        };
        // Read back, so that arguments obey the rules of documents.
        Ok(Pool::from_xml(&pool.to_xml(), &cenote_model::ReadOptions::strict())?.document)
    }
}

fn host_of(text: &str) -> Result<SourceHost> {
    let bad = || {
        Failure::new(Code::E0308, format!("'{text}' is no host"))
            .fix("write a name or address, and a port after a colon if needed")
            .next("cenote pool-define-as --help")
    };
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => (name, Some(port.parse().map_err(|_| bad())?)),
        _ => (text, None),
    };
    if name.is_empty() {
        return Err(bad());
    }
    Ok(SourceHost {
        name: name.to_owned(),
        port,
        ..SourceHost::default()
    })
}

fn device_of(path: &str) -> SourceDevice {
    SourceDevice {
        path: path.to_owned(),
        ..SourceDevice::default()
    }
}

/// Define a pool from arguments
#[derive(Args, Debug)]
pub(super) struct PoolDefineAs {
    #[command(flatten)]
    arguments: PoolArguments,
}

impl Verb for PoolDefineAs {
    const NAME: &'static str = "pool-define-as";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[
        example(
            "A pool in a folder",
            "cenote pool-define-as photos dir --target /srv/photos",
        ),
        example(
            "See its document first",
            "cenote pool-define-as photos dir --target /srv/photos --print-xml",
        ),
        example(
            "A pool on a mounted NFS export",
            "cenote pool-define-as shared netfs --source-host server --source-path /export --target /mnt/shared",
        ),
    ];

    fn run(self, context: &Context) -> Result<()> {
        let pool = self.arguments.document()?;
        if self.arguments.print_xml {
            return out::write(&pool.to_xml());
        }
        let message = format!("Pool {} defined", pool.name);
        define(context, Self::NAME, &pool, message)
    }
}

fn define(context: &Context, verb: &str, pool: &Pool, message: String) -> Result<()> {
    let node = context.node()?;
    let mut plan = Plan::new(verb, pool.name.as_str());
    plan = match node.pool(&pool.name) {
        Ok(_) => plan.change("replace the definition of pool", pool.name.as_str()),
        Err(_) => plan.change("define pool", pool.name.as_str()),
    };
    // The dry run defines it too, in a copy of the node's state that is thrown away, so that it
    // fails where the command would.
    let defined = node.pool_define(&pool.to_xml());
    if context.consent.dry_run {
        defined?;
        context.go_on(&plan)?;
        return Ok(());
    }
    let info = defined?;
    context.done(&Done::new("pool", "defined", info.name, message))
}

/// Start a transient pool from a document; it is forgotten when it is stopped
#[derive(Args, Debug)]
pub(super) struct PoolCreate {
    /// The document; - is standard input
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
    /// Refuse what is not known instead of keeping it without effect
    #[arg(long)]
    validate: bool,
    /// Build it first
    #[arg(long)]
    build: bool,
    #[command(flatten)]
    choice: BuildChoice,
}

impl Verb for PoolCreate {
    const NAME: &'static str = "pool-create";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Make a pool's folder and start it, for now",
        "cenote pool-create pool.xml --build",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let text = document::read(&self.file)?;
        let pool: Pool = document::parse(context, &text, self.validate)?;
        let message = format!("Pool {} created from {}", pool.name, self.file.display());
        create(context, Self::NAME, &pool, self.build, self.choice, message)
    }
}

/// Start a transient pool from arguments; it is forgotten when it is stopped
#[derive(Args, Debug)]
pub(super) struct PoolCreateAs {
    #[command(flatten)]
    arguments: PoolArguments,
    /// Build it first
    #[arg(long)]
    build: bool,
    #[command(flatten)]
    choice: BuildChoice,
}

impl Verb for PoolCreateAs {
    const NAME: &'static str = "pool-create-as";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "See the plan for a pool in a new folder",
        "cenote pool-create-as tmp dir --target /srv/tmp --build --dry-run",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let pool = self.arguments.document()?;
        if self.arguments.print_xml {
            return out::write(&pool.to_xml());
        }
        let message = format!("Pool {} created", pool.name);
        create(context, Self::NAME, &pool, self.build, self.choice, message)
    }
}

fn create(
    context: &Context,
    verb: &str,
    pool: &Pool,
    build: bool,
    choice: BuildChoice,
    message: String,
) -> Result<()> {
    let node = context.node()?;
    let name = pool.name.as_str();
    let mode = choice.if_asked(build);
    let target = pool
        .target
        .path
        .clone()
        .unwrap_or_else(|| format!("/dev/{name}"));
    let mut plan = Plan::new(verb, name).change("define transient pool", name);
    if let Some(mode) = mode {
        plan = plan_build(plan, name, &target, mode);
    }
    if context.consent.dry_run {
        // In a copy of the node's state, so that names and places in use are found.
        node.pool_define(&pool.to_xml())?;
    }
    if !context.go_on(&plan.change_with("start pool", name, target))? {
        return Ok(());
    }
    let info = node.pool_create(&pool.to_xml(), mode)?;
    let target = target_of(&info);
    context.done(&Done::new("pool", "created", info.name, message).at(target))
}
