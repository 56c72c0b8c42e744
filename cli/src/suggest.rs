//! "Did you mean": the nearest known word. It is only ever shown, never run.

/// The candidate nearest to `word`, if one is near enough to be a typing mistake.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .filter(|candidate| *candidate != word)
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| {
            let longer = candidate.chars().count().max(lower.chars().count());
            *distance <= (longer / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A sentence for a message, or nothing.
pub fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(word, candidates).map(|near| format!("did you mean '{near}'?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_are_recognised_and_strangers_are_not() {
        let verbs = ["pool-destroy", "pool-define", "vol-wipe", "vol-list"];
        assert_eq!(nearest("pool-destory", verbs), Some("pool-destroy"));
        assert_eq!(nearest("vol-lst", verbs), Some("vol-list"));
        assert_eq!(nearest("frobnicate", verbs), None);
        assert_eq!(nearest("", verbs), None);
    }
}
