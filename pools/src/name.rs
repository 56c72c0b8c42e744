//! Names of volumes.

use crate::error::{Error, Result};

/// Names that begin like this are ours: half-made and half-removed files.
pub(crate) const PRIVATE_PREFIX: &str = ".cenote-";

/// Checks the name of a volume: the rule of all names
/// ([`cenote_model::check_name`]), and not one of our temporary names.
///
/// # Errors
/// [`Error::BadName`] says what is wrong.
pub fn check_volume_name(name: &str) -> Result<()> {
    let reason = match cenote_model::check_name(name) {
        Err(error) => error.to_string(),
        Ok(()) if name.starts_with(PRIVATE_PREFIX) => {
            "names that begin with '.cenote-' are Cenote's own".into()
        }
        Ok(()) => return Ok(()),
    };
    const SHOWN: usize = 60;
    let mut shown: String = name
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if name.chars().count() > SHOWN {
        shown.push_str("...");
    }
    Err(Error::BadName {
        what: "volume",
        name: shown,
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_names_pass() {
        for name in [
            "a",
            "disk.qcow2",
            "web server",
            "größe",
            "-x",
            ".hidden",
            "a:b@c",
        ] {
            check_volume_name(name).unwrap();
        }
    }

    #[test]
    fn dangerous_names_are_refused_by_reason() {
        for (name, reason) in [
            ("", "empty"),
            ("a/b", "'/'"),
            ("../x", "'/'"),
            ("..", "directory"),
            ("a\nb", "line feed"),
            ("a\0b", "NUL"),
            (&"x".repeat(300), "300"),
            (".cenote-new-1", "own"),
        ] {
            let error = check_volume_name(name).unwrap_err().to_string();
            assert!(error.contains(reason), "{name:?}: {error}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_names_stay_in_their_directory(name in "\\PC{0,30}") {
            if check_volume_name(&name).is_ok() {
                let path = std::path::Path::new("/pool").join(&name);
                prop_assert_eq!(path.parent(), Some(std::path::Path::new("/pool")));
                prop_assert_eq!(path.file_name().and_then(|n| n.to_str()), Some(name.as_str()));
            }
        }
    }
}
