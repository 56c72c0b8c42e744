//! Package source files: the same sources for another suite.

use std::path::Path;

/// How a source file is written (sources.list(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `deb [options] URI suite component…`, one per line.
    OneLine,
    /// Stanzas of `Types:`, `URIs:`, `Suites:`, `Components:`.
    Deb822,
}

impl Style {
    /// The style that apt expects of a file of this name.
    pub(crate) fn of(file: &Path) -> Self {
        match file.extension() {
            Some(extension) if extension == "sources" => Self::Deb822,
            _ => Self::OneLine,
        }
    }

    /// The file name extension of this style.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::OneLine => "list",
            Self::Deb822 => "sources",
        }
    }
}

/// Those binary sources of `text` that have the suite `base`, for `suite` instead; none if no
/// source has it.
pub(crate) fn for_suite(text: &str, style: Style, base: &str, suite: &str) -> Option<String> {
    let found: Vec<String> = match style {
        Style::OneLine => text
            .lines()
            .filter_map(|line| line_for_suite(line, base, suite))
            .collect(),
        Style::Deb822 => text
            .split("\n\n")
            .filter_map(|stanza| stanza_for_suite(stanza, base, suite))
            .collect(),
    };
    (!found.is_empty()).then(|| found.join("\n"))
}

fn line_for_suite(line: &str, base: &str, suite: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if words.first() != Some(&"deb") {
        return None;
    }
    let address = match words.get(1)? {
        options if options.starts_with('[') => {
            1 + words.iter().skip(1).position(|word| word.ends_with(']'))? + 1
        }
        _ => 1,
    };
    (words.get(address + 1) == Some(&base)).then(|| {
        let mut words = words.clone();
        words[address + 1] = suite;
        words.join(" ") + "\n"
    })
}

fn stanza_for_suite(stanza: &str, base: &str, suite: &str) -> Option<String> {
    let lines: Vec<&str> = stanza
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
        .collect();
    let field = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    };
    let has = |name: &str, word: &str| {
        field(name).is_some_and(|value| value.split_whitespace().any(|found| found == word))
    };
    if !has("Types", "deb") || !has("Suites", base) || has("Enabled", "no") {
        return None;
    }
    let mut written = String::new();
    for line in lines {
        let key = line.split_once(':').map(|(key, _)| key);
        match key {
            Some(key) if key.eq_ignore_ascii_case("Suites") => {
                written.push_str(&format!("Suites: {suite}"));
            }
            Some(key) if key.eq_ignore_ascii_case("Types") => written.push_str("Types: deb"),
            _ => written.push_str(line),
        }
        written.push('\n');
    }
    Some(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
Types: deb deb-src
# a comment
URIs: mirror:/one
Suites: stable stable-updates
Components: main contrib
Signed-By: /some/key.gpg

Types: deb
URIs: mirror:/two
Suites: stable-security
Components: main
";

    #[test]
    fn a_stanza_keeps_its_address_and_key() {
        let extra = for_suite(DEB822, Style::Deb822, "stable", "stable-backports");
        let expected = "Types: deb\nURIs: mirror:/one\nSuites: stable-backports\n\
                        Components: main contrib\nSigned-By: /some/key.gpg\n";
        assert_eq!(extra.as_deref(), Some(expected));
    }

    #[test]
    fn a_stanza_switched_off_is_not_used() {
        let text = format!("Enabled: no\n{DEB822}");
        assert_eq!(for_suite(&text, Style::Deb822, "stable", "x"), None);
    }

    #[test]
    fn a_line_keeps_its_options_and_components() {
        let text = "# deb mirror:/zero stable main\n\
                    deb [ arch=amd64 signed-by=/k ] mirror:/one stable main contrib\n\
                    deb-src mirror:/one stable main\n\
                    deb mirror:/two stable-security main\n";
        let extra = for_suite(text, Style::OneLine, "stable", "stable-backports");
        let expected =
            "deb [ arch=amd64 signed-by=/k ] mirror:/one stable-backports main contrib\n";
        assert_eq!(extra.as_deref(), Some(expected));
        let plain = for_suite("deb mirror:/a s main", Style::OneLine, "s", "t");
        assert_eq!(plain.as_deref(), Some("deb mirror:/a t main\n"));
    }
}
