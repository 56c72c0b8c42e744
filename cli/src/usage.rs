//! Mistakes on the command line, told in our words.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::explain::Code;
use crate::failure::Failure;
use crate::suggest;
use crate::verbs;

/// What clap complains about, as a failure with a code and the next command.
pub(crate) fn failure(error: clap::Error) -> Failure {
    failure_of(&error)
}

/// The same for a borrowed error.
pub(crate) fn failure_of(error: &clap::Error) -> Failure {
    if error.kind() == ErrorKind::InvalidSubcommand {
        return unknown_command(&text_of(error, ContextKind::InvalidSubcommand));
    }
    let plain = error.render().to_string();
    let mut lines = plain.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    let mut what = first.trim_start_matches("error:").trim().to_owned();
    let mut tips = Vec::new();
    let mut usage = None;
    for line in lines {
        if let Some(tip) = line.strip_prefix("tip:") {
            tips.push(tip.trim().to_owned());
        } else if let Some(text) = line.strip_prefix("Usage:") {
            usage = Some(text.trim().to_owned());
        } else if !line.is_empty() && usage.is_none() && !line.starts_with("For more information") {
            // The list of missing arguments or of possible values.
            what.push_str(&format!("\n{line}"));
        }
    }
    let mut failure = Failure::new(Code::E0002, what.replace('\n', " "));
    if let Some(near) = suggested(error) {
        failure = failure.why(format!("did you mean '{near}'?"));
    } else if !tips.is_empty() {
        failure = failure.why(tips.join("; "));
    }
    let Some(usage) = usage else {
        return failure.next("cenote --help");
    };
    let words = usage.split_whitespace().take(2);
    let command: Vec<&str> = words
        .filter(|word| !word.starts_with(['[', '<', '-']))
        .collect();
    failure
        .fix(format!("write it as: {usage}"))
        .next(format!("{} --help", command.join(" ")))
}

/// The failure for a verb that does not exist.
pub(crate) fn unknown_command(word: &str) -> Failure {
    let failure = Failure::new(Code::E0003, format!("there is no command '{word}'"));
    let names = verbs::all().iter().map(|entry| entry.name);
    let actions = verbs::all()
        .iter()
        .filter_map(|entry| Some(entry.spaced()?.1));
    let nouns = crate::verb::NOUNS.iter().map(|(noun, _)| *noun);
    match suggest::did_you_mean(word, names.chain(nouns).chain(actions)) {
        Some(near) => failure
            .why(near)
            .fix("nothing was run; type the command again")
            .next("cenote --help"),
        None => failure
            .fix("nothing was run; see the list of commands")
            .next("cenote --help"),
    }
}

fn suggested(error: &clap::Error) -> Option<String> {
    let kinds = [ContextKind::SuggestedArg, ContextKind::SuggestedValue];
    kinds.iter().find_map(|kind| {
        let text = text_of(error, *kind);
        (!text.is_empty()).then_some(text)
    })
}

fn text_of(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.first().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}
