//! Names of ISO 9660 proper (ECMA-119 7.5): eight characters, a dot, three more.

use std::collections::HashSet;

/// A name for a file or directory that none of its siblings has, made from its real one.
pub(super) fn short_name(name: &str, directory: bool, taken: &mut HashSet<String>) -> String {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !directory && !stem.is_empty() => (stem, extension),
        _ => (name, ""),
    };
    let stem = characters(stem, 8);
    let extension = characters(extension, 3);
    let finish = |stem: &str| match directory {
        true => stem.to_owned(),
        false => format!("{stem}.{extension};1"),
    };
    let mut short = finish(&stem);
    let mut number = 0u32;
    while !taken.insert(short.clone()) {
        number += 1;
        let digits = number.to_string();
        let keep = stem.len().min(8usize.saturating_sub(digits.len()));
        short = finish(&format!("{}{digits}", &stem[..keep]));
    }
    short
}

/// Up to `limit` of the characters that the standard allows.
fn characters(text: &str, limit: usize) -> String {
    text.chars()
        .take(limit)
        .map(|c| match c.to_ascii_uppercase() {
            c @ ('A'..='Z' | '0'..='9') => c,
            _ => '_',
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_unlike() {
        let mut taken = HashSet::new();
        let mut short = |name| short_name(name, false, &mut taken);
        assert_eq!(short("ks.cfg"), "KS.CFG;1");
        assert_eq!(short("user-data"), "USER_DAT.;1");
        assert_eq!(short("user-date"), "USER_DA1.;1");
        assert_eq!(short("network-config"), "NETWORK_.;1");
        assert_eq!(short(".hidden"), "_HIDDEN.;1");
        assert_eq!(short_name("pool.d", true, &mut HashSet::new()), "POOL_D");
    }
}
