//! `wipe-list`, `wipe-resume` and `verify-certificate`.

use std::path::PathBuf;

use cenote_pools::certificate::{self, Chain, PublicKey, Verified};
use cenote_pools::wipe::{self, Reread, WipeEvent};
use clap::Args;

use super::vol::wipe::report;
use crate::consent::Level;
use crate::context::Context;
use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::plan::Plan;
use crate::verb::{Entry, Example, Kind, Verb, example};
use crate::view::{CertificateItem, CertificateItems, Done, WipeItem, WipeItems};

pub(super) const ENTRIES: &[Entry] = &[
    Entry::of::<WipeList>(),
    Entry::of::<WipeResume>(),
    Entry::of::<VerifyCertificate>(),
];

/// List wipes that were interrupted
#[derive(Args, Debug)]
pub(super) struct WipeList {}

impl Verb for WipeList {
    const NAME: &'static str = "wipe-list";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example("What is not finished", "cenote wipe-list")];

    fn run(self, context: &Context) -> Result<()> {
        let rows = context.node()?.wipes_pending()?;
        context.print(&WipeItems(rows.into_iter().map(WipeItem::from).collect()))
    }
}

/// Take up interrupted wipes where they stopped
#[derive(Args, Debug)]
pub(super) struct WipeResume {
    /// Ids of wipes, as wipe-list shows them; all of them where none is given
    id: Vec<String>,
    /// Drop the records instead; the volumes stay as they are
    #[arg(long, requires = "id")]
    forget: bool,
}

impl Verb for WipeResume {
    const NAME: &'static str = "wipe-resume";
    const KIND: Kind = Kind::Change;
    const EXAMPLES: &'static [Example] = &[example(
        "Finish all that was interrupted",
        "cenote wipe-resume --yes",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let mut pending = node.wipes_pending()?;
        for id in &self.id {
            if !pending.iter().any(|wipe| wipe.id == *id) {
                return Err(
                    cenote_engine::Error::from(wipe::Error::NoSuchWipe { id: id.clone() }).into(),
                );
            }
        }
        pending.retain(|wipe| self.id.is_empty() || self.id.contains(&wipe.id));
        let name = pending.first().map_or("nothing", |wipe| &wipe.id);
        let (deed, action) = if self.forget {
            ("forget", "forget")
        } else {
            ("finish wiping", "overwrite")
        };
        let paths: Vec<String> = pending
            .iter()
            .map(|wipe| wipe.path.display().to_string())
            .collect();
        let level = if pending.is_empty() {
            Level::None
        } else {
            Level::Ask
        };
        let mut plan =
            Plan::new(Self::NAME, name).asks(level, format!("{deed} {}", paths.join(", ")));
        for wipe in &pending {
            let detail = format!(
                "{} pass {} of {}, from {} of {} bytes",
                wipe.algorithm, wipe.pass, wipe.passes, wipe.position, wipe.total
            );
            plan = plan.change_with(action, wipe.path.display().to_string(), detail);
        }
        if !context.go_on(&plan)? {
            return Ok(());
        }
        for wipe in pending {
            let name = wipe
                .volume
                .unwrap_or_else(|| wipe.path.display().to_string());
            if self.forget {
                node.wipe_forget(&wipe.id)?;
                let message = format!("Wipe {} forgotten", wipe.id);
                context.done(&Done::new("wipe", "forgotten", &wipe.id, message))?;
                continue;
            }
            let wiped = context.long(format!("wiping {name}"), |progress| {
                node.wipe_resume(&wipe.id, progress)
            })?;
            report(context, &name, &wiped)?;
        }
        Ok(())
    }
}

/// Check certificates of wiping: form, signature, chain, and the disk
#[derive(Args, Debug)]
pub(super) struct VerifyCertificate {
    /// Certificates; all of the node's where none is given
    file: Vec<PathBuf>,
    /// The key that must have signed them, 64 hexadecimal digits; by default this node's
    #[arg(long, value_name = "HEX")]
    key: Option<String>,
    /// The certificate is away from its folder: look at it alone, not at its chain
    #[arg(long)]
    alone: bool,
    /// Read the disk again and compare it with what the wipe left
    #[arg(long)]
    reread: bool,
}

impl Verb for VerifyCertificate {
    const NAME: &'static str = "verify-certificate";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "All certificates of this node",
        "cenote verify-certificate",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let node = context.node()?;
        let key = match &self.key {
            Some(text) => Some(PublicKey::from_hex(text).ok_or_else(|| {
                Failure::new(Code::E0314, format!("'{text}' is no key"))
                    .fix("a key is 64 lower-case hexadecimal digits")
                    .next("cenote help verify-certificate")
            })?),
            None => node.certificate_key()?,
        };
        let mut files = self.file.clone();
        if files.is_empty() {
            files = own_certificates(&node.certificates_dir());
        }
        let chain = if self.alone {
            Chain::Alone
        } else {
            Chain::Whole
        };
        let mut items = Vec::new();
        for file in &files {
            let verified = certificate::verify(file, chain, key.as_ref()).map_err(refused)?;
            let disk = self
                .reread
                .then(|| self.read_again(context, &verified))
                .transpose()?;
            items.push(CertificateItem::new(file, verified, disk));
        }
        context.print(&CertificateItems(items))
    }
}

impl VerifyCertificate {
    fn read_again(&self, context: &Context, verified: &Verified) -> Result<String> {
        let Some(report) = &verified.certificate.report else {
            return Ok("see the certificates of its parts".to_owned());
        };
        let name = report.request.path.display().to_string();
        let total: u64 = report.files.iter().map(|file| file.extent_bytes).sum();
        let found = context.long(format!("reading {name}"), |progress| {
            let observer = |event: &WipeEvent<'_>| match event {
                WipeEvent::Advanced { done } => progress.update(*done, total),
                _ => std::ops::ControlFlow::Continue(()),
            };
            wipe::reread(report, &observer).map_err(cenote_engine::Error::from)
        })?;
        let mut said = Vec::new();
        for file in found {
            let path = file.path.display();
            match file.found {
                Reread::Holds { .. } => said.push("as the wipe left it".to_owned()),
                Reread::NotComparable { because } => said.push(because),
                Reread::Differs { offsets, .. } => {
                    let first = offsets.first().copied().unwrap_or(0);
                    let what = format!("'{path}' is not as the wipe left it, first at {first}");
                    return Err(Failure::new(Code::E0314, what)
                        .why("it was written to since, or the certificate is not of it")
                        .fix("wipe it again if it should hold nothing")
                        .next("cenote vol-list --all"));
                }
            }
        }
        said.dedup();
        Ok(said.join("; "))
    }
}

fn refused(error: certificate::Error) -> Failure {
    if let certificate::Error::IsHead { last, .. } = &error {
        let next = match last {
            Some(last) => format!("cenote verify-certificate {}", last.display()),
            None => "cenote help verify-certificate".to_owned(),
        };
        return Failure::new(Code::E0314, error.to_string())
            .fix("check a certificate: its chain and head are checked with it")
            .next(next)
            .source(error);
    }
    Failure::new(Code::E0314, error.to_string())
        .fix("get the certificate again from the node that issued it, with its folder")
        .next(format!("cenote explain {}", Code::E0314))
        .source(error)
}

fn own_certificates(folder: &std::path::Path) -> Vec<PathBuf> {
    let Ok(listing) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = listing
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .filter(|path| path.file_name().is_some_and(|name| name != "head.json"))
        .collect();
    files.sort();
    files
}
