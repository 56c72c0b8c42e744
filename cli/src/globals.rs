//! Options that every command takes.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputFormat {
    /// What virsh prints: aligned columns or `Name: value` lines.
    #[default]
    Table,
    /// JSON as docs/schemas describes it; sizes in bytes.
    Json,
    /// The same as YAML.
    Yaml,
    /// Only names, one per line.
    Name,
    /// The table with every column.
    Wide,
}

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set or TERM is dumb.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How a long operation tells how far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProgressMode {
    /// A bar when standard error is a terminal, else nothing.
    #[default]
    Auto,
    /// A bar with rate and remaining time.
    Bar,
    /// One JSON object per line; the last one has `result`.
    Jsonl,
    /// Nothing.
    None,
}

/// The options themselves. What is absent here may come from the environment or a file: see
/// [`crate::settings`].
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Print results as a table, JSON, YAML, names only, or a wide table
    #[arg(short = 'o', long, global = true, value_name = "FORMAT")]
    pub output: Option<OutputFormat>,

    /// Where the node keeps its state [env: CENOTE_STATE_DIR]
    #[arg(long, global = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub state_dir: Option<PathBuf>,

    /// Where backing files may lie besides the pools; may be repeated
    #[arg(long, global = true, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub backing_dirs: Vec<PathBuf>,

    /// The node to work on; only the local one: cenote:///system or cenote:///session
    #[arg(short = 'c', long, global = true, value_name = "URI")]
    pub connect: Option<String>,

    /// Say more about what is done; twice for details
    #[arg(short = 'v', long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Print no messages and no progress, only data and errors
    #[arg(short = 'q', long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Show the whole chain of causes when a command fails
    #[arg(long, global = true)]
    pub debug: bool,

    /// When to use colour
    #[arg(long, global = true, value_name = "WHEN")]
    pub color: Option<Color>,

    /// How long operations show how far they are, on standard error
    #[arg(long, global = true, value_name = "HOW")]
    pub progress: Option<ProgressMode>,
}
