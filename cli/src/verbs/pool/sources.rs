//! `find-storage-pool-sources`: what a pool could be made of.

use std::path::PathBuf;
use std::process::Command;

use cenote_model::Element;
use cenote_model::pool::PoolKind;
use clap::Args;

use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::out;
use crate::verb::{Example, Kind, Verb, example};

/// Print the volume groups of this machine as a sources document
#[derive(Args, Debug)]
pub(super) struct FindSources {
    /// Type of pool; only logical can be looked for
    #[arg(value_name = "TYPE", id = "type")]
    kind: PoolKind,
    /// A file that says where to look, for types that need it; no such type is supported
    #[arg(long = "srcSpec", value_name = "FILE")]
    source_spec: Option<PathBuf>,
}

/// The same with options in place of a document
#[derive(Args, Debug)]
pub(super) struct FindSourcesAs {
    /// Type of pool; only logical can be looked for
    #[arg(value_name = "TYPE", id = "type")]
    kind: PoolKind,
    /// A server to ask, for types that need it; no such type is supported
    #[arg(long)]
    host: Option<String>,
    /// Its port
    #[arg(long)]
    port: Option<String>,
    /// An iSCSI initiator, for types that need it; no such type is supported
    #[arg(long)]
    initiator: Option<String>,
}

impl Verb for FindSources {
    const NAME: &'static str = "find-storage-pool-sources";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "The volume groups there are",
        "cenote find-storage-pool-sources logical",
    )];

    fn run(self, _context: &Context) -> Result<()> {
        if let Some(file) = self.source_spec {
            return Err(unneeded("--srcSpec", &file.display().to_string()));
        }
        find(self.kind)
    }
}

impl Verb for FindSourcesAs {
    const NAME: &'static str = "find-storage-pool-sources-as";
    const KIND: Kind = Kind::Stream;
    const EXAMPLES: &'static [Example] = &[example(
        "The volume groups there are",
        "cenote find-storage-pool-sources-as logical",
    )];

    fn run(self, _context: &Context) -> Result<()> {
        let options = [
            ("--host", self.host),
            ("--port", self.port),
            ("--initiator", self.initiator),
        ];
        for (option, value) in options {
            if let Some(value) = value {
                return Err(unneeded(option, &value));
            }
        }
        find(self.kind)
    }
}

fn unneeded(option: &str, value: &str) -> Failure {
    Failure::new(Code::E0205, format!("{option} {value} cannot be honoured"))
        .why("only volume groups of this machine can be looked for")
        .fix(format!("leave {option} out"))
        .next("cenote find-storage-pool-sources logical")
}

fn find(kind: PoolKind) -> Result<()> {
    if kind != PoolKind::Logical {
        return Err(Failure::new(
            Code::E0205,
            format!("sources of type '{kind}' cannot be looked for"),
        )
        .why("Cenote looks for volume groups of LVM only")
        .fix("name the source yourself when you define the pool")
        .next("cenote pool-define-as --help"));
    }
    let arguments = ["--noheadings", "--separator", "\t", "-o", "vg_name,pv_name"];
    let output = Command::new("pvs")
        .args(arguments)
        .env("LC_ALL", "C")
        .output();
    let output = output.map_err(|error| {
        Failure::new(Code::E0110, "the program 'pvs' is not installed")
            .fix("install it: apt-get install lvm2")
            .next("cenote doctor")
            .source(error)
    })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::new(Code::E0110, "pvs failed")
            .why(reason)
            .fix("run as root; LVM needs device-mapper")
            .next("cenote doctor"));
    }
    out::write(&sources(&String::from_utf8_lossy(&output.stdout)))
}

/// libvirt's `<sources>` document for the lines of pvs.
fn sources(listing: &str) -> String {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in listing.lines() {
        let mut fields = line.trim().split('\t').map(str::trim);
        let (Some(group), Some(device)) = (fields.next(), fields.next()) else {
            continue;
        };
        if group.is_empty() {
            continue;
        }
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, devices)) => devices.push(device),
            None => groups.push((group, vec![device])),
        }
    }
    let mut root = Element::new("sources");
    for (group, devices) in groups {
        let mut source = Element::new("source");
        for device in devices {
            source = source.with_child(Element::new("device").with("path", device));
        }
        source = source
            .with_child(Element::new("name").with_text(group))
            .with_child(Element::new("format").with("type", "lvm2"));
        root = root.with_child(source);
    }
    root.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_groups_become_sources() {
        let text = sources("  vg0\t/dev/sda2\n  vg0\t/dev/sdb1\n  \t/dev/sdc\n  vg1\t/dev/sdd\n");
        let root = cenote_model::parse(&text, &cenote_model::ReadOptions::default());
        let root = root.expect("well-formed");
        assert_eq!(root.elements().count(), 2);
        assert!(text.contains("<device path='/dev/sdb1'/>"), "{text}");
        assert!(text.contains("<name>vg1</name>"), "{text}");
    }
}
