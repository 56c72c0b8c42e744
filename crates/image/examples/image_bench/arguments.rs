//! Options with one letter and a value, and file names, as qemu-img has them.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::str::FromStr;

/// Options that take no value.
const FLAGS: &[&str] = &["-w", "-d"];

/// A parsed command line.
pub(crate) struct Arguments {
    options: BTreeMap<String, String>,
    files: Vec<String>,
}

impl Arguments {
    /// Splits options from file names. `-d` takes a value where a number follows.
    pub(crate) fn parse(words: Vec<String>) -> Result<Self, Box<dyn Error>> {
        let mut parsed = Self {
            options: BTreeMap::new(),
            files: Vec::new(),
        };
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            if !word.starts_with('-') {
                parsed.files.push(word);
                continue;
            }
            let number_follows = words.peek().is_some_and(|next| next.parse::<u64>().is_ok());
            let value = if FLAGS.contains(&word.as_str()) && !number_follows {
                String::new()
            } else {
                words.next().ok_or(format!("{word} needs a value"))?
            };
            parsed.options.insert(word, value);
        }
        Ok(parsed)
    }

    /// Whether the option is there.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.contains_key(option)
    }

    /// The option's value as text.
    pub(crate) fn text(&self, option: &str) -> Result<&str, Box<dyn Error>> {
        let value = self.options.get(option);
        Ok(value.ok_or(format!("{option} is missing"))?)
    }

    /// The option's value.
    pub(crate) fn get<T: FromStr>(&self, option: &str) -> Result<T, Box<dyn Error>>
    where
        T::Err: Error + 'static,
    {
        Ok(self.text(option)?.parse()?)
    }

    /// The file name of this number.
    pub(crate) fn file(&self, index: usize) -> Result<&Path, Box<dyn Error>> {
        let name = self.files.get(index).ok_or("a file name is missing")?;
        Ok(Path::new(name))
    }
}
