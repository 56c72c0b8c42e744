//! Documents from files, and editing them.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use cenote_model::{Document, ReadOptions, xpath};

use crate::context::Context;
use crate::engine_errors::of_io;
use crate::explain::Code;
use crate::failure::{Failure, Result};

/// Reads a document file; `-` is standard input.
///
/// # Errors
/// It cannot be read, is too large or is not UTF-8.
pub(crate) fn read(path: &Path) -> Result<String> {
    let limit = u64::try_from(ReadOptions::default().max_bytes).unwrap_or(u64::MAX);
    let mut text = Vec::new();
    let read = if path == Path::new("-") {
        io::stdin()
            .lock()
            .take(limit.saturating_add(1))
            .read_to_end(&mut text)
    } else {
        fs::File::open(path)
            .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut text))
    };
    let shown = path.display();
    read.map_err(|error| {
        Failure::new(of_io(&error), format!("cannot read '{shown}'"))
            .why(error.to_string())
            .fix("name a document file, or - for standard input")
            .next("cenote pool-dumpxml default")
    })?;
    String::from_utf8(text).map_err(|error| {
        Failure::new(Code::E0501, format!("'{shown}' is not a document"))
            .why("it is not UTF-8 text")
            .fix("name an XML file")
            .next("cenote pool-dumpxml default")
            .source(error)
    })
}

/// Parses a document; says on standard error what will have no effect.
///
/// # Errors
/// As the model has it; with `strict` also what is not known.
pub(crate) fn parse<T: Document>(context: &Context, text: &str, strict: bool) -> Result<T> {
    let options = if strict {
        ReadOptions::strict()
    } else {
        ReadOptions::default()
    };
    let parsed = T::from_xml(text, &options)?;
    for note in parsed.notes {
        context.note(&format!("note: {note}"));
    }
    Ok(parsed.document)
}

/// The document as it is, or what an XPath expression selects in it.
///
/// # Errors
/// The expression is wrong.
pub(crate) fn select(text: String, expression: Option<&str>, wrap: bool) -> Result<String> {
    let Some(expression) = expression else {
        return Ok(text);
    };
    let root = cenote_model::parse(&text, &ReadOptions::default())?;
    let selection = xpath::select(&root, expression)?;
    Ok(if wrap {
        selection.print_wrapped()
    } else {
        selection.print()
    })
}

/// Lets the user edit a document until `accept` takes it; `None` when it was not changed.
///
/// # Errors
/// The editor failed, or the user gave up; the message then says where the text was kept.
pub(crate) fn edit<T>(
    original: &str,
    mut accept: impl FnMut(&str) -> Result<T>,
) -> Result<Option<T>> {
    edit_with(original, &mut |text, _| accept(text), false)
}

/// The same for a document that has lax rules besides strict ones: the user may choose them
/// (virsh's `i`), upon which `accept` is told so.
///
/// # Errors
/// As [`edit`].
pub(crate) fn edit_or_force<T>(
    original: &str,
    mut accept: impl FnMut(&str, bool) -> Result<T>,
) -> Result<Option<T>> {
    edit_with(original, &mut accept, true)
}

fn edit_with<T>(
    original: &str,
    accept: &mut dyn FnMut(&str, bool) -> Result<T>,
    has_lax: bool,
) -> Result<Option<T>> {
    let failed = |error: io::Error| {
        Failure::new(
            of_io(&error),
            "cannot write the document to a temporary file",
        )
        .fix("make room in the temporary folder, or set TMPDIR")
        .next("cenote doctor")
        .source(error)
    };
    let mut file = tempfile::Builder::new()
        .prefix("cenote-")
        .suffix(".xml")
        .tempfile()
        .map_err(failed)?;
    file.write_all(original.as_bytes())
        .and_then(|()| file.flush())
        .map_err(failed)?;
    loop {
        run_editor(file.path())?;
        let text = read(file.path())?;
        if text == original {
            return Ok(None);
        }
        let mut failure = match accept(&text, false) {
            Ok(value) => return Ok(Some(value)),
            Err(failure) => failure,
        };
        let mut answer = try_again(&failure, has_lax);
        if answer == Answer::Lax {
            failure = match accept(&text, true) {
                Ok(value) => return Ok(Some(value)),
                Err(failure) => failure,
            };
            answer = try_again(&failure, false);
        }
        if answer != Answer::Again {
            let kept = file
                .into_temp_path()
                .keep()
                .map_err(|error| failed(error.error))?;
            return Err(failure.fix(format!(
                "nothing was changed; your text is in {}",
                kept.display()
            )));
        }
    }
}

/// `$VISUAL`, else `$EDITOR`, else vi; each may have arguments.
fn run_editor(path: &Path) -> Result<()> {
    let set = |name: &str| {
        std::env::var(name)
            .ok()
            .filter(|value| !value.trim().is_empty())
    };
    let editor = set("VISUAL")
        .or_else(|| set("EDITOR"))
        .unwrap_or_else(|| "vi".to_owned());
    let status = std::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("{editor} \"$1\""))
        .arg("sh")
        .arg(path)
        .status();
    let failure = Failure::new(Code::E0110, format!("the editor '{editor}' failed"))
        .fix("choose another one with VISUAL or EDITOR; nothing was changed")
        .next("EDITOR=nano cenote pool-edit POOL");
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failure.why(status.to_string())),
        Err(error) => Err(failure.source(error)),
    }
}

/// What the user wants done about a document that was not taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Again,
    GiveUp,
    Lax,
}

/// Asks, as virsh does, whether to edit once more. Without a terminal the answer is no.
fn try_again(failure: &Failure, has_lax: bool) -> Answer {
    use io::IsTerminal as _;
    if !io::stdin().is_terminal() {
        return Answer::GiveUp;
    }
    let _ = write!(anstream::stderr(), "{}", failure.render(false));
    let choices = if has_lax { "[y,n,i,f,?]" } else { "[y,n,?]" };
    loop {
        let _ = write!(io::stderr(), "Try again? {choices}: ");
        let mut answer = String::new();
        if !io::stdin()
            .read_line(&mut answer)
            .is_ok_and(|read| read > 0)
        {
            return Answer::GiveUp;
        }
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => return Answer::Again,
            "n" | "no" => return Answer::GiveUp,
            "i" | "f" if has_lax => return Answer::Lax,
            _ => {
                let lax = if has_lax {
                    "i, f: take it, keeping without effect what is not known\n"
                } else {
                    ""
                };
                let _ = write!(
                    io::stderr(),
                    "y: edit it again\nn: give up, and keep the text in a file\n{lax}"
                );
            }
        }
    }
}
