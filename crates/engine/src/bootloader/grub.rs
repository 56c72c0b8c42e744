//! Runs GRUB 2's configuration as far as it decides what is started: variables, conditions,
//! functions, menu entries and the environment block. Whatever a command would do to a screen, a
//! disk or a module has no part in that and is passed over.

use super::script::{Command, Script, Word, parse};
use super::{Entry, Files, LONGEST_CONFIGURATION};
use std::collections::HashMap;

/// Commands that are run at most.
const MOST_STEPS: usize = 100_000;
/// Functions and files call each other this deep at most.
const DEEPEST: usize = 16;
/// The longest text that a variable's value can grow to, in bytes.
const LONGEST_VALUE: usize = 64 << 10;

/// An entry of the menu.
#[derive(Debug, Clone)]
struct Item {
    title: String,
    id: Option<String>,
    submenu: bool,
    body: Script,
}

struct Run<'a, F> {
    files: &'a F,
    prefix: &'a str,
    variables: HashMap<String, String>,
    functions: HashMap<String, Script>,
    menu: Vec<Item>,
    entry: Entry,
    /// Entries are kept in files of the Boot Loader Specification.
    uses_bls: bool,
    steps: usize,
    depth: usize,
}

/// The entry that GRUB starts when nobody chooses one.
///
/// # Errors
/// As text.
pub(super) fn choose(text: &str, prefix: &str, files: &impl Files) -> Result<Entry, String> {
    let mut run = Run {
        files,
        prefix,
        variables: HashMap::new(),
        functions: HashMap::new(),
        menu: Vec::new(),
        entry: Entry::default(),
        uses_bls: false,
        steps: 0,
        depth: 0,
    };
    run.set("prefix", prefix);
    run.set("config_directory", prefix);
    run.set("grub_platform", "pc");
    run.set("feature_menuentry_id", "y");
    run.script(&parse(text)?)?;
    let wanted = run.variable("default");
    let mut path = wanted.split('>');
    loop {
        let item = run.pick(path.next().unwrap_or_default().trim())?;
        run.menu.clear();
        run.script(&item.body)?;
        if !item.submenu {
            run.entry.title = item.title;
            break;
        }
    }
    if run.entry.kernel.is_empty() {
        return Err(format!(
            "the entry '{}' starts no Linux kernel",
            run.entry.title
        ));
    }
    Ok(run.entry)
}

impl<F: Files> Run<'_, F> {
    fn variable(&self, name: &str) -> String {
        self.variables.get(name).cloned().unwrap_or_default()
    }

    fn set(&mut self, name: &str, value: &str) {
        let mut end = value.len().min(LONGEST_VALUE);
        while !value.is_char_boundary(end) {
            end -= 1;
        }
        self.variables
            .insert(name.to_owned(), value[..end].to_owned());
    }

    /// The item of the menu with this number, title or id; the first where there is none.
    fn pick(&self, wanted: &str) -> Result<Item, String> {
        let by_number = wanted
            .parse()
            .ok()
            .and_then(|number: usize| self.menu.get(number));
        let named = |item: &&Item| item.title == wanted || item.id.as_deref() == Some(wanted);
        let item = by_number.or_else(|| self.menu.iter().find(named));
        item.or(self.menu.first()).cloned().ok_or_else(|| {
            let text = if self.uses_bls {
                "its entries are in files of the Boot Loader Specification, which are not read"
            } else {
                "it has no menu entry"
            };
            text.to_owned()
        })
    }

    fn expand(&self, words: &[Word]) -> Vec<String> {
        let mut expanded = Vec::new();
        for word in words {
            word.expand(&|name| self.variable(name), &mut expanded);
        }
        expanded
    }

    /// Runs commands, and gives whether the last succeeded.
    fn script(&mut self, script: &Script) -> Result<bool, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("its functions or files call each other without end".to_owned());
        }
        let mut succeeded = true;
        for command in script.iter() {
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err("it does not come to an end".to_owned());
            }
            succeeded = self.command(command)?;
        }
        self.depth -= 1;
        Ok(succeeded)
    }

    fn command(&mut self, command: &Command) -> Result<bool, String> {
        match command {
            Command::Simple(words) => {
                let words = self.expand(words);
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                match words.as_slice() {
                    [] => Ok(true),
                    ["!", name, rest @ ..] => Ok(!self.simple(name, rest)?),
                    [name, rest @ ..] => self.simple(name, rest),
                }
            }
            Command::If(branches, otherwise) => {
                for (condition, then) in branches {
                    if self.branch(condition)? {
                        return self.branch(then);
                    }
                }
                self.branch(otherwise)
            }
            Command::Function(name, body) => {
                self.functions.insert(name.clone(), body.clone());
                Ok(true)
            }
            Command::Entry {
                submenu,
                words,
                body,
            } => {
                let words = self.expand(words);
                let id = words.iter().position(|word| word == "--id");
                self.menu.push(Item {
                    title: words.first().cloned().unwrap_or_default(),
                    id: id.and_then(|at| words.get(at + 1).cloned()),
                    submenu: *submenu,
                    body: body.clone(),
                });
                Ok(true)
            }
        }
    }

    /// The parser bounds how deep conditions are nested, so they do not count as calls.
    fn branch(&mut self, script: &Script) -> Result<bool, String> {
        self.depth -= 1;
        let result = self.script(script);
        self.depth += 1;
        result
    }

    fn simple(&mut self, name: &str, words: &[&str]) -> Result<bool, String> {
        if let Some(body) = self.functions.get(name).cloned() {
            return self.script(&body);
        }
        let assignment = match (name, words) {
            ("set", [assignment, ..]) => assignment,
            (assignment, _) => assignment,
        };
        if let Some((name, value)) = assignment.split_once('=') {
            self.set(name, value);
            return Ok(true);
        }
        match (name, words) {
            ("[", [test @ .., "]"]) | ("test", test) => self.test(test),
            ("false", _) => Ok(false),
            ("unset", [name]) => {
                self.variables.remove(*name);
                Ok(true)
            }
            ("load_env", _) => self.load_environment(words),
            ("source" | "configfile" | ".", [path, ..]) => self.source(path),
            ("linux" | "linux16" | "linuxefi", [kernel, arguments @ ..]) => {
                self.entry.kernel = path(kernel);
                let arguments: Vec<_> = arguments.iter().map(|word| quoted(word)).collect();
                self.entry.command_line = arguments.join(" ");
                Ok(true)
            }
            ("initrd" | "initrd16" | "initrdefi", names) => {
                self.entry.initrds = names.iter().map(|name| path(name)).collect();
                Ok(true)
            }
            ("blscfg", _) => {
                self.uses_bls = true;
                Ok(true)
            }
            _ => Ok(true),
        }
    }

    fn test(&self, words: &[&str]) -> Result<bool, String> {
        let has = |name: &str| -> Result<bool, String> {
            Ok(self
                .files
                .read(&path(name), LONGEST_CONFIGURATION)?
                .is_some_and(|c| !c.is_empty()))
        };
        Ok(match words {
            ["!", rest @ ..] => !self.test(rest)?,
            [left, "-a", rest @ ..] => !left.is_empty() && self.test(rest)?,
            ["-s" | "-f" | "-e", name] => has(name)?,
            ["-n", text] | [text] => !text.is_empty(),
            ["-z", text] => text.is_empty(),
            [left, "=" | "==", right] => left == right,
            [left, "!=", right] => left != right,
            [
                left,
                relation @ ("-eq" | "-ne" | "-lt" | "-gt" | "-le" | "-ge"),
                right,
            ] => {
                let number = |text: &str| text.parse::<i64>().unwrap_or(0);
                let order = number(left).cmp(&number(right));
                match *relation {
                    "-eq" => order.is_eq(),
                    "-ne" => order.is_ne(),
                    "-lt" => order.is_lt(),
                    "-gt" => order.is_gt(),
                    "-le" => order.is_le(),
                    _ => order.is_ge(),
                }
            }
            _ => false,
        })
    }

    /// Takes variables from an environment block. An entry for one boot only is passed over: GRUB
    /// takes such an order back when it follows it, and nothing is written here.
    fn load_environment(&mut self, words: &[&str]) -> Result<bool, String> {
        let (file, names) = match words {
            ["-f" | "--file", file, names @ ..] => (path(file), names),
            names => (format!("{}/grubenv", self.prefix), names),
        };
        let Some(content) = self.files.read(&file, LONGEST_CONFIGURATION)? else {
            return Ok(false);
        };
        for line in String::from_utf8_lossy(&content).lines() {
            if let Some((name, value)) = line.split_once('=')
                && !name.starts_with('#')
                && name != "next_entry"
                && (names.is_empty() || names.contains(&name))
            {
                self.set(name, value);
            }
        }
        Ok(true)
    }

    fn source(&mut self, name: &str) -> Result<bool, String> {
        let Some(content) = self.files.read(&path(name), LONGEST_CONFIGURATION)? else {
            return Ok(false);
        };
        self.script(&parse(&String::from_utf8_lossy(&content))?)
    }
}

/// A file's path without the device that stands before it: `(hd0,msdos1)/boot/vmlinuz`.
fn path(name: &str) -> String {
    match name.strip_prefix('(').and_then(|name| name.split_once(')')) {
        Some((_, path)) => path.to_owned(),
        None => name.to_owned(),
    }
}

/// A word as GRUB puts it on the kernel's command line.
fn quoted(word: &str) -> String {
    let mut text = String::new();
    for character in word.chars() {
        if matches!(character, '\\' | '\'' | '"') {
            text.push('\\');
        }
        text.push(character);
    }
    match word.contains(' ') {
        true => format!("\"{text}\""),
        false => text,
    }
}
