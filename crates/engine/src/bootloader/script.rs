//! The language of GRUB's configuration (GRUB manual, *Writing full configuration files directly*):
//! words, commands and their nesting.

use std::rc::Rc;

/// Commands are nested this deep at most.
const DEEPEST: usize = 32;

/// A piece of a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Text(String),
    /// The value of a variable; unquoted, it falls into words at its blanks.
    Variable {
        name: String,
        quoted: bool,
    },
}

/// A word. A quoted word is there even if it is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) pieces: Vec<Piece>,
    quoted: bool,
}

/// Commands, one after the other.
pub(super) type Script = Rc<Vec<Command>>;

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Simple(Vec<Word>),
    /// Conditions with what follows from them, in turn, and what follows from none.
    If(Vec<(Script, Script)>, Script),
    Function(String, Script),
    /// A menu entry or a submenu.
    Entry {
        submenu: bool,
        words: Vec<Word>,
        body: Script,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(Word),
    End,
}

impl Word {
    /// The text of a word without variables and quotes, which may be of the language.
    fn bare(&self) -> Option<&str> {
        match self.pieces.as_slice() {
            [Piece::Text(text)] if !self.quoted => Some(text),
            _ => None,
        }
    }

    /// Adds what this word is to `words`, with the variables' values.
    pub(super) fn expand(&self, value: &dyn Fn(&str) -> String, words: &mut Vec<String>) {
        let mut word = self.quoted.then(String::new);
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => word.get_or_insert_default().push_str(text),
                Piece::Variable { name, quoted: true } => {
                    word.get_or_insert_default().push_str(&value(name));
                }
                Piece::Variable { name, .. } => {
                    let value = value(name);
                    let mut parts = value.split_ascii_whitespace();
                    if let Some(first) = parts.next() {
                        word.get_or_insert_default().push_str(first);
                    }
                    for part in parts {
                        words.extend(word.replace(part.to_owned()));
                    }
                }
            }
        }
        words.extend(word);
    }
}

/// Reads a script.
///
/// # Errors
/// As text, with what is missing or stands alone.
pub(super) fn parse(text: &str) -> Result<Script, String> {
    let mut parser = Parser {
        tokens: tokens(text),
        at: 0,
        depth: 0,
    };
    parser.script(&[])
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut word: Option<Word> = None;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            ' ' | '\t' | '\r' => tokens.extend(word.take().map(Token::Word)),
            '\n' | ';' => {
                tokens.extend(word.take().map(Token::Word));
                tokens.push(Token::End);
            }
            '#' if word.is_none() => while characters.next_if(|c| *c != '\n').is_some() {},
            '\\' => match characters.next() {
                Some('\n') | None => {}
                Some(other) => word.get_or_insert_default().push(other),
            },
            '\'' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                characters
                    .by_ref()
                    .take_while(|c| *c != '\'')
                    .for_each(|c| word.push(c));
            }
            '"' => {
                let word = word.get_or_insert_default();
                word.quoted = true;
                while let Some(inner) = characters.next() {
                    match inner {
                        '"' => break,
                        '$' => word.variable(&mut characters, true),
                        '\\' => match characters.next() {
                            Some(escaped @ ('$' | '"' | '\\')) => word.push(escaped),
                            Some('\n') | None => {}
                            Some(other) => {
                                word.push('\\');
                                word.push(other);
                            }
                        },
                        other => word.push(other),
                    }
                }
            }
            '$' => word
                .get_or_insert_default()
                .variable(&mut characters, false),
            other => word.get_or_insert_default().push(other),
        }
    }
    tokens.extend(word.map(Token::Word));
    tokens
}

impl Word {
    fn push(&mut self, character: char) {
        if let Some(Piece::Text(text)) = self.pieces.last_mut() {
            text.push(character);
        } else {
            self.pieces.push(Piece::Text(character.into()));
        }
    }

    /// Takes a variable's name, behind its dollar sign.
    fn variable(
        &mut self,
        characters: &mut std::iter::Peekable<std::str::Chars<'_>>,
        quoted: bool,
    ) {
        let mut name = String::new();
        if characters.next_if_eq(&'{').is_some() {
            name.extend(characters.by_ref().take_while(|c| *c != '}'));
        } else if let Some(special) = characters.next_if(|c| "?@*#".contains(*c)) {
            name.push(special);
        } else {
            let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            while let Some(character) = characters.next_if(is_name) {
                name.push(character);
            }
        }
        if name.is_empty() {
            self.push('$');
        } else {
            self.pieces.push(Piece::Variable { name, quoted });
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    /// Commands up to one of these words, which stays.
    fn script(&mut self, ends: &[&str]) -> Result<Script, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("its commands are nested too deep".to_owned());
        }
        let mut commands = Vec::new();
        loop {
            while self.tokens.get(self.at) == Some(&Token::End) {
                self.at += 1;
            }
            match self.bare() {
                Some(word) if ends.contains(&word) => break,
                _ if self.at >= self.tokens.len() => break,
                _ => commands.extend(self.command()?),
            }
        }
        self.depth -= 1;
        Ok(Rc::new(commands))
    }

    /// The bare word that comes next.
    fn bare(&self) -> Option<&str> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => word.bare(),
            _ => None,
        }
    }

    fn word(&mut self) -> Option<Word> {
        match self.tokens.get(self.at) {
            Some(Token::Word(word)) => {
                self.at += 1;
                Some(word.clone())
            }
            _ => None,
        }
    }

    fn expect(&mut self, wanted: &str) -> Result<(), String> {
        while self.tokens.get(self.at) == Some(&Token::End) {
            self.at += 1;
        }
        if self.bare() == Some(wanted) {
            self.at += 1;
            return Ok(());
        }
        Err(format!("'{wanted}' is missing"))
    }

    fn command(&mut self) -> Result<Option<Command>, String> {
        match self.bare() {
            Some("if") => self.condition().map(Some),
            Some("function") => {
                self.at += 1;
                let name = self.word().unwrap_or_default();
                let name = name.bare().unwrap_or_default().to_owned();
                Ok(Some(Command::Function(name, self.block()?)))
            }
            Some(kind @ ("menuentry" | "submenu")) => {
                let submenu = kind == "submenu";
                self.at += 1;
                let mut words = Vec::new();
                while self.bare() != Some("{") {
                    match self.word() {
                        Some(word) => words.push(word),
                        None => return Err("an entry without '{'".to_owned()),
                    }
                }
                let body = self.block()?;
                Ok(Some(Command::Entry {
                    submenu,
                    words,
                    body,
                }))
            }
            // Configurations do not build their entries in loops.
            Some("for" | "while" | "until") => {
                self.script(&["do"])?;
                self.expect("do")?;
                self.script(&["done"])?;
                self.expect("done")?;
                Ok(None)
            }
            Some(word @ ("then" | "elif" | "else" | "fi" | "do" | "done" | "}")) => {
                Err(format!("'{word}' stands alone"))
            }
            _ => {
                // A block may end without a line's end before it.
                let words = std::iter::from_fn(|| match self.bare() {
                    Some("}") => None,
                    _ => self.word(),
                });
                let words = words.collect();
                Ok(Some(Command::Simple(words)))
            }
        }
    }

    fn block(&mut self) -> Result<Script, String> {
        self.expect("{")?;
        let body = self.script(&["}"])?;
        self.expect("}")?;
        Ok(body)
    }

    fn condition(&mut self) -> Result<Command, String> {
        let mut branches = Vec::new();
        loop {
            // `if` or `elif`.
            self.at += 1;
            let condition = self.script(&["then"])?;
            self.expect("then")?;
            branches.push((condition, self.script(&["elif", "else", "fi"])?));
            if self.bare() != Some("elif") {
                break;
            }
        }
        let mut otherwise = Script::default();
        if self.bare() == Some("else") {
            self.at += 1;
            otherwise = self.script(&["fi"])?;
        }
        self.expect("fi")?;
        Ok(Command::If(branches, otherwise))
    }
}
