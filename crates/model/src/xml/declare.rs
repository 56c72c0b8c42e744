//! The declarations from which readers and writers of elements are made.
//!
//! [`element!`] takes a struct whose fields say how they stand in the XML:
//!
//! - `attribute("x")`: an attribute; `Option` if it may be absent,
//! - `attribute_or_default("x")`: absent means the type's default, always printed,
//! - `leaf("x")`: a child element with text only; `Option` or `Vec` as the count may be,
//! - `leaf_or_default("x")`: absent means the type's default, always printed,
//! - `child("x")`: a child element; `Option` or `Vec` likewise,
//! - `child_or_default("x")`: absent means the type's default, always printed,
//! - `flag("x")`: an empty child element that is there or not,
//! - `text()`: the element's own text.
//!
//! Printing follows the order of fields, so that is libvirt's. Whatever else an element has is
//! looked up in its `known` table and else kept in the field `kept`, with a note.

use super::reader::Reader;
use super::tree::{Element, Node};
use super::value::Value;
use crate::error::Error;

/// What is done with a known part that no field describes (or that one describes, and of which
/// the user should hear).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Treatment {
    /// Kept; has no effect, and the text says why that is harmless.
    Inert(&'static str),
    /// Kept; honoured in the way the text says.
    Mapped(&'static str),
    /// Refused; the text says what it is and what to do instead.
    Refused(&'static str),
}

/// An element's content.
pub(crate) trait Content: Sized {
    fn read(reader: Reader<'_>) -> Result<Self, Error>;
    fn write(&self, name: &str) -> Element;
}

impl Content for Element {
    fn read(reader: Reader<'_>) -> Result<Self, Error> {
        Ok(reader.element().clone())
    }

    fn write(&self, _name: &str) -> Element {
        self.clone()
    }
}

impl<T: Content> Content for Box<T> {
    fn read(reader: Reader<'_>) -> Result<Self, Error> {
        T::read(reader).map(Box::new)
    }

    fn write(&self, name: &str) -> Element {
        T::write(self, name)
    }
}

/// Whether serialised forms leave a field out.
pub(crate) trait Present {
    fn absent(&self) -> bool {
        false
    }
}

impl<T> Present for Option<T> {
    fn absent(&self) -> bool {
        self.is_none()
    }
}

impl<T> Present for Vec<T> {
    fn absent(&self) -> bool {
        self.is_empty()
    }
}

impl Present for bool {
    fn absent(&self) -> bool {
        !self
    }
}

impl Present for Element {}

/// A field that is an attribute.
pub(crate) trait AttributeField: Sized {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error>;
    fn write(&self, element: &mut Element, name: &str);
}

impl<T: Value> AttributeField for T {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        match reader.attribute_value(name)? {
            Some(value) => Ok(value),
            None => Err(reader.missing(format!("attribute '{name}'"))),
        }
    }

    fn write(&self, element: &mut Element, name: &str) {
        element.set(name, self.print());
    }
}

impl<T: Value> AttributeField for Option<T> {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        reader.attribute_value(name)
    }

    fn write(&self, element: &mut Element, name: &str) {
        if let Some(value) = self {
            AttributeField::write(value, element, name);
        }
    }
}

/// A field that is a child element with nothing but text.
pub(crate) trait LeafField: Sized {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error>;
    fn write(&self, element: &mut Element, name: &str);
}

fn read_leaf<T: Value>(mut reader: Reader<'_>) -> Result<T, Error> {
    let value = reader.text_value()?;
    reader.finish_bare()?;
    Ok(value)
}

impl<T: Value> LeafField for T {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        match reader.child(name)? {
            Some(child) => read_leaf(child),
            None => Err(reader.missing(format!("element <{name}>"))),
        }
    }

    fn write(&self, element: &mut Element, name: &str) {
        let leaf = Element::new(name).with_text(self.print());
        element.children.push(Node::Element(leaf));
    }
}

impl<T: Value> LeafField for Option<T> {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        reader.child(name)?.map(read_leaf).transpose()
    }

    fn write(&self, element: &mut Element, name: &str) {
        if let Some(value) = self {
            LeafField::write(value, element, name);
        }
    }
}

impl<T: Value> LeafField for Vec<T> {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        reader.children(name).into_iter().map(read_leaf).collect()
    }

    fn write(&self, element: &mut Element, name: &str) {
        for value in self {
            LeafField::write(value, element, name);
        }
    }
}

/// A field that is a child element.
pub(crate) trait ChildField: Sized {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error>;
    fn write(&self, element: &mut Element, name: &str);
}

impl<T: Content> ChildField for T {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        match reader.child_content(name)? {
            Some(child) => Ok(child),
            None => Err(reader.missing(format!("element <{name}>"))),
        }
    }

    fn write(&self, element: &mut Element, name: &str) {
        element
            .children
            .push(Node::Element(Content::write(self, name)));
    }
}

impl<T: Content> ChildField for Option<T> {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        reader.child_content(name)
    }

    fn write(&self, element: &mut Element, name: &str) {
        if let Some(child) = self {
            ChildField::write(child, element, name);
        }
    }
}

impl<T: Content> ChildField for Vec<T> {
    fn read(reader: &mut Reader<'_>, name: &str) -> Result<Self, Error> {
        reader.children(name).into_iter().map(T::read).collect()
    }

    fn write(&self, element: &mut Element, name: &str) {
        for child in self {
            ChildField::write(child, element, name);
        }
    }
}

/// Reads an empty child element that is there or not.
pub(crate) fn read_flag(reader: &mut Reader<'_>, name: &str) -> Result<bool, Error> {
    match reader.child(name)? {
        Some(child) => child.finish_bare().map(|()| true),
        None => Ok(false),
    }
}

/// Declares an element; see the module.
macro_rules! element {
    (@read $r:ident attribute $x:literal) => { $crate::xml::AttributeField::read(&mut $r, $x)? };
    (@read $r:ident attribute_or_default $x:literal) => {
        $r.attribute_value($x)?.unwrap_or_default()
    };
    (@read $r:ident leaf $x:literal) => { $crate::xml::LeafField::read(&mut $r, $x)? };
    (@read $r:ident leaf_or_default $x:literal) => {
        <Option<_> as $crate::xml::LeafField>::read(&mut $r, $x)?.unwrap_or_default()
    };
    (@read $r:ident child $x:literal) => { $crate::xml::ChildField::read(&mut $r, $x)? };
    (@read $r:ident child_or_default $x:literal) => { $r.child_content($x)?.unwrap_or_default() };
    (@read $r:ident flag $x:literal) => { $crate::xml::read_flag(&mut $r, $x)? };
    (@read $r:ident text) => { $r.text_value()? };

    (@write $e:ident $f:expr, attribute $x:literal) => {
        $crate::xml::AttributeField::write(&$f, &mut $e, $x)
    };
    (@write $e:ident $f:expr, attribute_or_default $x:literal) => {
        $crate::xml::AttributeField::write(&$f, &mut $e, $x)
    };
    (@write $e:ident $f:expr, leaf $x:literal) => {
        $crate::xml::LeafField::write(&$f, &mut $e, $x)
    };
    (@write $e:ident $f:expr, leaf_or_default $x:literal) => {
        $crate::xml::LeafField::write(&$f, &mut $e, $x)
    };
    (@write $e:ident $f:expr, child $x:literal) => {
        $crate::xml::ChildField::write(&$f, &mut $e, $x)
    };
    (@write $e:ident $f:expr, child_or_default $x:literal) => {
        $crate::xml::ChildField::write(&$f, &mut $e, $x)
    };
    (@write $e:ident $f:expr, flag $x:literal) => {
        if $f {
            $e.children.push($crate::xml::Node::Element($crate::xml::Element::new($x)));
        }
    };
    (@write $e:ident $f:expr, text) => {
        $e = $e.with_text($crate::xml::Value::print(&$f))
    };

    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $field:ident: $type:ty = $mode:ident($($x:literal)?) ),* $(,)?
        }
        $(known { $($known:literal => $treatment:ident($reason:expr)),* $(,)? })?
        $(check $check:path;)?
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(skip_serializing_if = "crate::xml::Present::absent")]
                pub $field: $type,
            )*
            /// What no field describes, kept and printed last.
            #[serde(skip_serializing_if = "crate::xml::Kept::is_empty")]
            pub kept: $crate::xml::Kept,
        }

        impl $crate::xml::Content for $name {
            fn read(mut reader: $crate::xml::Reader<'_>) -> Result<Self, $crate::Error> {
                #[allow(unused_mut)]
                let mut read = Self {
                    $( $field: $crate::xml::element!(@read reader $mode $($x)?), )*
                    kept: $crate::xml::Kept::default(),
                };
                $( $check(&mut read, &mut reader)?; )?
                read.kept = reader.finish(&[
                    $($( ($known, $crate::xml::Treatment::$treatment($reason)) ),*)?
                ])?;
                Ok(read)
            }

            fn write(&self, name: &str) -> $crate::xml::Element {
                #[allow(unused_mut)]
                let mut element = $crate::xml::Element::new(name);
                $( $crate::xml::element!(@write element self.$field, $mode $($x)?); )*
                self.kept.write(&mut element);
                element
            }
        }

        impl $crate::xml::Present for $name {}
    };
}

/// Declares an enumeration of words; exactly one variant is the `#[default]`.
macro_rules! values {
    (
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $text:literal ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord,
            serde::Serialize, serde::Deserialize,
        )]
        pub enum $name {
            $( $(#[$variant_meta])* #[serde(rename = $text)] $variant, )*
        }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word in documents.
            pub fn as_str(self) -> &'static str {
                match self {
                    $( Self::$variant => $text, )*
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $( $text => Ok(Self::$variant), )*
                    _ => Err(format!("one of {} is expected", [$($text),*].join(", "))),
                }
            }
        }

        impl $crate::xml::Value for $name {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse()
            }

            fn print(&self) -> String {
                self.as_str().to_owned()
            }
        }

        impl $crate::xml::Present for $name {}
    };
}

pub(crate) use {element, values};
