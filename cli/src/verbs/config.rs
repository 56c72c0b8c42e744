//! `config-show`.

use clap::Args;

use crate::context::Context;
use crate::failure::Result;
use crate::globals::OutputFormat;
use crate::verb::{Example, Kind, Verb, example};
use crate::view::{ConfigSetting, ConfigSettings};

/// Show the settings in force
#[derive(Args, Debug)]
pub(super) struct ConfigShow {
    /// Also show where each setting comes from
    #[arg(long)]
    origin: bool,
}

impl Verb for ConfigShow {
    const NAME: &'static str = "config-show";
    const KIND: Kind = Kind::Read;
    const EXAMPLES: &'static [Example] = &[example(
        "Show what is in force and which file, variable or option says so",
        "cenote config-show --origin",
    )];

    fn run(self, context: &Context) -> Result<()> {
        let rows = context
            .settings
            .origins
            .iter()
            .map(|setting| ConfigSetting {
                key: setting.key.to_owned(),
                value: setting.value.clone(),
                layer: setting.layer.to_owned(),
                origin: setting.origin.clone(),
            });
        let settings = ConfigSettings(rows.collect());
        let mut output = context.output.clone();
        if self.origin && output.format == OutputFormat::Table {
            output.format = OutputFormat::Wide;
        }
        output.print(&settings)
    }
}
