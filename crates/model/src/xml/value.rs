//! Values that stand in attributes and texts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::declare::{Content, Present, values};
use super::reader::Reader;
use super::tree::{Element, Node};
use crate::error::Error;

/// Text that stands for a value. What [`Value::print`] gives, [`Value::parse`] takes.
pub(crate) trait Value: Sized {
    /// The value, or what would be valid.
    fn parse(text: &str) -> Result<Self, String>;

    /// The same for an element's text, where white space around it has no meaning.
    fn parse_text(text: &str) -> Result<Self, String> {
        Self::parse(text.trim())
    }

    /// The canonical text.
    fn print(&self) -> String;
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    /// Strings are taken as they are: a command line may begin with a space.
    fn parse_text(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn print(&self) -> String {
        self.clone()
    }
}

impl Value for Uuid {
    fn parse(text: &str) -> Result<Self, String> {
        Uuid::try_parse(text)
            .map_err(|_| "a UUID is 32 hexadecimal digits, with dashes as 8-4-4-4-12".to_owned())
    }

    fn print(&self) -> String {
        self.hyphenated().to_string()
    }
}

impl Present for Uuid {}
impl Present for String {}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Value for $type {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| {
                    format!("a whole number from {} to {} is expected", <$type>::MIN, <$type>::MAX)
                })
            }

            fn print(&self) -> String {
                self.to_string()
            }
        }

        impl Present for $type {}
    )*};
}

numbers!(u8, u16, u32, u64, i32, i64);

/// A number of bus addressing, printed in hexadecimal with at least `WIDTH` digits, read in
/// decimal or hexadecimal.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Hex<const WIDTH: usize>(pub u64);

impl<const WIDTH: usize> fmt::Display for Hex<WIDTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:0WIDTH$x}", self.0)
    }
}

impl<const WIDTH: usize> FromStr for Hex<WIDTH> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        match digits {
            Some(digits) if !digits.starts_with('+') => u64::from_str_radix(digits, 16),
            Some(_) => "+".parse(),
            None => text.parse(),
        }
        .map(Self)
        .map_err(|_| "a number, decimal or hexadecimal with 0x, is expected".to_owned())
    }
}

impl<const WIDTH: usize> Value for Hex<WIDTH> {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn print(&self) -> String {
        self.to_string()
    }
}

impl<const WIDTH: usize> Present for Hex<WIDTH> {}

values! {
    /// `yes` or `no`.
    pub enum YesNo {
        /// Yes.
        Yes = "yes",
        /// No.
        #[default]
        No = "no",
    }
}

values! {
    /// `on` or `off`.
    pub enum OnOff {
        /// On.
        On = "on",
        /// Off.
        #[default]
        Off = "off",
    }
}

impl YesNo {
    /// Whether it is yes.
    pub fn is_yes(self) -> bool {
        self == Self::Yes
    }
}

impl OnOff {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// What others keep in `<metadata>`: elements of foreign namespaces, untouched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Metadata(pub Vec<Node>);

impl Metadata {
    /// The element whose root has this namespace.
    pub fn of_namespace(&self, uri: &str) -> Option<&Element> {
        self.0.iter().find_map(|node| match node {
            Node::Element(element) if namespace(element) == Some(uri) => Some(element),
            _ => None,
        })
    }

    /// Puts `part` in place of what there is of its namespace, or adds it.
    pub fn replace(&mut self, part: Element) {
        if let Some(uri) = namespace(&part).map(str::to_owned) {
            self.remove(&uri);
        }
        self.0.push(Node::Element(part));
    }

    /// Removes what there is of that namespace.
    pub fn remove(&mut self, uri: &str) {
        self.0
            .retain(|node| !matches!(node, Node::Element(e) if namespace(e) == Some(uri)));
    }
}

fn namespace(element: &Element) -> Option<&str> {
    match element.name.split_once(':') {
        Some((prefix, _)) => element.get(&format!("xmlns:{prefix}")),
        None => element.get("xmlns"),
    }
}

impl Content for Metadata {
    fn read(mut reader: Reader<'_>) -> Result<Self, Error> {
        let children = reader.element().children.clone();
        reader.text();
        Ok(Self(children))
    }

    fn write(&self, name: &str) -> Element {
        Element {
            name: name.to_owned(),
            children: self.0.clone(),
            ..Element::default()
        }
    }
}

impl Present for Metadata {}
