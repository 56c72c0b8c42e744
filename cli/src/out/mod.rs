//! Results on standard output: tables as virsh prints them, JSON, YAML or names.
//!
//! A result is a serde structure of [`crate::view`]; how it looks as a table is its [`View`]
//! implementation, so that the machine formats and the human one cannot disagree.

mod size;
mod table;

use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

pub use size::{human, parse_delta, parse_size};
pub use table::{Column, Shape, Table};

use crate::explain::Code;
use crate::failure::{Failure, Result};
use crate::globals::OutputFormat;

/// How a result is laid out for a person.
pub enum Layout {
    /// Columns.
    Table(Table),
    /// `Label: value` lines: key, label, value.
    Record(Vec<Field>),
    /// Text as it is, such as an XML document or "Vol a.img created".
    Text(String),
}

/// One line of a record.
pub struct Field {
    /// What `--columns` calls it.
    pub key: &'static str,
    /// What stands before the colon.
    pub label: &'static str,
    /// The value.
    pub value: String,
    /// Shown only by `-o wide` or when `--columns` names it.
    pub wide: bool,
}

impl Field {
    /// A line that is always shown.
    pub fn new(key: &'static str, label: &'static str, value: impl Into<String>) -> Self {
        Self {
            key,
            label,
            value: value.into(),
            wide: false,
        }
    }

    /// A line that only `-o wide` shows.
    pub fn wide(key: &'static str, label: &'static str, value: impl Into<String>) -> Self {
        Self {
            wide: true,
            ..Self::new(key, label, value)
        }
    }
}

/// A result that can be printed in every format.
pub trait View: Serialize {
    /// For people.
    fn layout(&self) -> Layout;
    /// For `-o name`.
    fn names(&self) -> Vec<String>;
}

/// The choices that shape output.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// The format.
    pub format: OutputFormat,
    /// `--columns`.
    pub columns: Option<Vec<String>>,
    /// `--noheader`.
    pub noheader: bool,
}

impl Output {
    /// Prints a result.
    ///
    /// # Errors
    /// An unknown column, or standard output cannot be written.
    pub fn print(&self, view: &impl View) -> Result<()> {
        write(&self.render(view)?)
    }

    /// The text of a result, each line ended.
    ///
    /// # Errors
    /// An unknown column, or a value that the format cannot express.
    pub fn render(&self, view: &impl View) -> Result<String> {
        match self.format {
            OutputFormat::Json => {
                let text = match self.columns {
                    None => serde_json::to_string_pretty(view),
                    Some(_) => serde_json::to_string_pretty(&self.selected(view)?),
                };
                Ok(text.map_err(format_failure)? + "\n")
            }
            OutputFormat::Yaml => {
                let text = match self.columns {
                    None => serde_norway::to_string(view),
                    Some(_) => serde_norway::to_string(&self.selected(view)?),
                };
                text.map_err(format_failure)
            }
            OutputFormat::Name => Ok(view.names().into_iter().map(|name| name + "\n").collect()),
            OutputFormat::Table | OutputFormat::Wide => self.for_people(view),
        }
    }

    fn for_people(&self, view: &impl View) -> Result<String> {
        let wide = self.format == OutputFormat::Wide;
        match view.layout() {
            Layout::Text(mut text) => {
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                Ok(text)
            }
            Layout::Table(table) => table.render(&Shape {
                columns: self.columns.as_deref(),
                wide,
                noheader: self.noheader,
                width: terminal_width(),
            }),
            Layout::Record(fields) => self.record(&fields, wide),
        }
    }

    fn record(&self, fields: &[Field], wide: bool) -> Result<String> {
        let chosen: Vec<&Field> = match &self.columns {
            None => fields.iter().filter(|field| wide || !field.wide).collect(),
            Some(keys) => {
                let find = |key: &String| {
                    let field = fields.iter().find(|field| field.key == key);
                    let known = fields.iter().map(|field| field.key);
                    field.ok_or_else(|| table::unknown_column(key, known))
                };
                keys.iter().map(find).collect::<Result<_>>()?
            }
        };
        // virsh aligns values at column 17, or two after the longest label.
        let longest = chosen.iter().map(|field| field.label.len() + 2).max();
        let width = longest.unwrap_or(0).max(16);
        let lines = chosen.iter().map(|field| {
            let value = field.value.replace(|c: char| c.is_control(), "\u{fffd}");
            if self.noheader {
                format!("{value}\n")
            } else {
                format!("{:<width$}{value}\n", format!("{}:", field.label))
            }
        });
        Ok(lines.collect())
    }

    /// The JSON value, reduced to the columns asked for.
    fn selected(&self, view: &impl View) -> Result<serde_json::Value> {
        use serde_json::Value;
        let value = serde_json::to_value(view).map_err(format_failure)?;
        let Some(keys) = &self.columns else {
            return Ok(value);
        };
        let reduce = |value: Value| -> Result<Value> {
            let Value::Object(fields) = value else {
                return Ok(value);
            };
            for key in keys {
                if !fields.contains_key(key) {
                    let known = fields.keys().map(String::as_str);
                    return Err(table::unknown_column(key, known));
                }
            }
            let kept = fields.into_iter().filter(|(name, _)| keys.contains(name));
            Ok(Value::Object(kept.collect()))
        };
        match value {
            Value::Array(items) => items.into_iter().map(reduce).collect(),
            other => reduce(other),
        }
    }
}

fn format_failure(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::new(Code::E0001, "the result cannot be expressed in that format")
        .fix("use another format and report this")
        .next("run it again with -o table")
        .source(error)
}

/// Writes to standard output. A reader that went away ends the program quietly, as it does for
/// every well-behaved filter.
///
/// # Errors
/// Any other write error, such as a full disk.
pub fn write(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Failure::new(Code::E0101, "cannot write to standard output")
            .fix("check the file or program that takes the output")
            .source(error)),
    }
}

/// Columns of the terminal, when standard output is one.
fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let columns = rustix::termios::tcgetwinsize(io::stdout()).ok()?.ws_col;
    (columns > 0).then_some(usize::from(columns))
}

/// "yes" or "no", as virsh has it.
#[must_use]
pub fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

/// A word as it must be typed in a shell.
#[must_use]
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) && !word.starts_with('-') {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}
