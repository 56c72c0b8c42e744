//! Error codes and their pages: what `cenote explain E0301` prints.
//!
//! A page is a Markdown file in `docs/errors/`, compiled in. Its first line is `# TITLE`. Codes are
//! never reused: scripts and search engines keep them.

use std::fmt;

use crate::exit::Exit;

macro_rules! codes {
    ($($code:ident => $exit:ident,)*) => {
        /// An error code. The hundreds say the area: 00 the command line, 01 the machine and the
        /// node's state, 02 pools, 03 volumes, 04 images, 05 documents, 06 domains, 07 installs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "each code is documented by its page")]
        pub enum Code { $($code,)* }

        impl Code {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            /// The code as it is printed.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$code => stringify!($code),)* }
            }

            /// The exit code of a command that ends with this error.
            #[must_use]
            pub const fn exit(self) -> Exit {
                match self { $(Self::$code => Exit::$exit,)* }
            }

            /// The page, as Markdown.
            #[must_use]
            pub const fn page(self) -> &'static str {
                match self {
                    $(Self::$code => include_str!(concat!(
                        "../../docs/errors/", stringify!($code), ".md"
                    )),)*
                }
            }
        }
    };
}

codes! {
    // The command line.
    E0001 => Failure,
    E0002 => Usage,
    E0003 => Usage,
    E0004 => Usage,
    E0005 => Host,
    E0006 => Usage,
    E0007 => Declined,
    E0008 => Declined,
    E0009 => Interrupted,
    E0010 => NotFound,
    E0011 => Usage,
    E0012 => Timeout,
    // The machine and the node's state.
    E0101 => Failure,
    E0102 => Host,
    E0103 => Host,
    E0104 => Host,
    E0105 => Conflict,
    E0106 => Host,
    E0107 => NotFound,
    E0108 => Conflict,
    E0109 => Verification,
    E0110 => Host,
    // Pools.
    E0201 => NotFound,
    E0202 => Conflict,
    E0203 => InvalidState,
    E0204 => InvalidState,
    E0205 => Failure,
    E0206 => InvalidState,
    E0207 => InvalidState,
    // Volumes.
    E0301 => NotFound,
    E0302 => Conflict,
    E0303 => Conflict,
    E0304 => Conflict,
    E0305 => Conflict,
    E0306 => InvalidState,
    E0307 => Failure,
    E0308 => Usage,
    E0309 => Verification,
    E0310 => Verification,
    E0311 => InvalidState,
    E0312 => Conflict,
    E0313 => NotFound,
    E0314 => Verification,
    // Images.
    E0401 => InvalidState,
    E0402 => Failure,
    E0403 => Verification,
    E0404 => Usage,
    E0405 => InvalidState,
    E0406 => Conflict,
    E0407 => InvalidState,
    E0408 => NotFound,
    E0409 => InvalidState,
    E0410 => Usage,
    E0411 => Verification,
    E0412 => NotFound,
    E0413 => Conflict,
    // Documents.
    E0501 => Failure,
    E0502 => Failure,
    E0503 => Failure,
    E0504 => Usage,
    // Domains.
    E0601 => NotFound,
    E0602 => Conflict,
    E0603 => InvalidState,
    E0604 => InvalidState,
    E0605 => Failure,
    E0606 => Failure,
    E0607 => Failure,
    E0608 => Usage,
    E0609 => NotFound,
    // Installs.
    E0701 => Failure,
    E0702 => Usage,
    E0703 => NotFound,
    E0704 => Usage,
    E0705 => Verification,
    E0706 => Timeout,
}

impl Code {
    /// Finds a code in the form a user would type: `E0301`, `e0301`, `301`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().trim_start_matches(['e', 'E']);
        let number: u16 = digits.parse().ok()?;
        let name = format!("E{number:04}");
        Self::ALL.iter().copied().find(|code| code.as_str() == name)
    }

    /// The title of the page.
    #[must_use]
    pub fn title(self) -> &'static str {
        let first = self.page().lines().next().unwrap_or_default();
        first.trim_start_matches('#').trim()
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_page_that_explains_and_helps() {
        for code in Code::ALL {
            let page = code.page();
            assert!(page.starts_with("# "), "{code}: no title");
            assert!(page.contains("\n## What to do\n"), "{code}: no remedy");
            assert!(page.contains("cenote "), "{code}: names no command");
            assert!(page.lines().count() > 6, "{code}: too short to help");
        }
    }

    #[test]
    fn codes_are_found_however_they_are_typed() {
        for text in ["E0301", "e0301", "301", " 0301 "] {
            assert_eq!(Code::parse(text), Some(Code::E0301), "{text}");
        }
        assert_eq!(Code::parse("E9999"), None);
        assert_eq!(Code::parse("x"), None);
    }
}
