//! Changes of the running machine: discs, and what its screen shows.

use std::fs::File;
use std::path::Path;

use cenote_model::Document as _;
use cenote_model::domain::Domain;
use serde_json::{Value, json};

use super::act::{Phase, Supervisor};
use super::monitor::Monitor;
use crate::domains::define::parse;
use crate::domains::translate;

/// Has the picture on the screen written to a file that exists.
pub(super) fn screenshot(monitor: &mut Monitor, path: &Path) -> Result<(), String> {
    let file = File::options()
        .write(true)
        .truncate(true)
        .open(path)
        .map_err(|error| format!("'{}': {error}", path.display()))?;
    monitor.request("screenshot", &Value::Null, &[file])
}

impl Supervisor<'_> {
    /// Puts the disc of `document` into the drive, or takes out the one that is there, and goes
    /// over to that document.
    pub(super) fn change_medium(
        &mut self,
        document: &str,
        target: &str,
        force: bool,
    ) -> Result<(), String> {
        let document = parse(document).map_err(|error| error.to_string())?;
        let Phase::Up { monitor, .. } = &mut self.phase else {
            return Err("domain is not running".to_owned());
        };
        let (position, disc) =
            translate::disc(self.node, &document, target).map_err(|error| error.to_string())?;
        let files = disc
            .map(|path| File::open(&path).map_err(|error| format!("'{}': {error}", path.display())))
            .transpose()?;
        let parameters = json!({"drive": position, "force": force});
        let files: Vec<File> = files.into_iter().collect();
        monitor.request("change-medium", &parameters, &files)?;
        self.go_over(document)
    }

    /// The domain is another document's from now on.
    pub(super) fn go_over(&mut self, document: Domain) -> Result<(), String> {
        let mut live = document.clone();
        translate::name_sockets(&mut live, &self.run_dir);
        live.id = Some(self.record.id());
        self.document = document;
        let recorded = self.record.document(&live.to_xml());
        recorded.map_err(|error| error.to_string())
    }
}
