//! What all kinds of documents have in common: they are read from text and printed to it.

use crate::error::{Error, Note};
use crate::xml::{Content, Context, Element, ReadOptions, Reader, first_element, parse};

/// A document and what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed<T> {
    /// The document.
    pub document: T,
    /// Remarks, in the order in which they were found.
    pub notes: Vec<Note>,
}

/// A kind of document.
pub trait Document: Sized {
    /// Name of its root element.
    const ROOT: &'static str;

    /// Reads a document.
    ///
    /// # Errors
    /// [`Error::Root`] if the text's first element is another (or the text is a fragment without
    /// the root), and all others of [`Error`].
    fn from_xml(text: &str, options: &ReadOptions) -> Result<Parsed<Self>, Error>;

    /// The document as a tree.
    fn to_element(&self) -> Element;

    /// The document as text, ending in a line feed.
    fn to_xml(&self) -> String {
        self.to_element().to_string()
    }
}

/// Reads the text's root element as `T`.
pub(crate) fn read<T: Content>(
    root: &'static str,
    text: &str,
    options: &ReadOptions,
) -> Result<Parsed<T>, Error> {
    let parsed = parse(text, options);
    let found = match &parsed {
        Ok(element) => element.name.clone(),
        // A fragment has several roots and is not well-formed; its first element says what it is.
        Err(Error::Syntax { .. }) => first_element(text).unwrap_or_default().to_owned(),
        Err(_) => root.to_owned(),
    };
    if found != root {
        return Err(Error::Root {
            expected: root,
            found: found.chars().take(200).collect(),
        });
    }
    let element = parsed?;
    let context = Context::new(text, options);
    let document = T::read(Reader::root(&element, &context))?;
    Ok(Parsed {
        document,
        notes: context.into_notes(),
    })
}

/// Makes a type a [`Document`] with the given root element.
macro_rules! document {
    ($type:ty, $root:literal) => {
        impl $crate::Document for $type {
            const ROOT: &'static str = $root;

            fn from_xml(
                text: &str,
                options: &$crate::ReadOptions,
            ) -> Result<$crate::Parsed<Self>, $crate::Error> {
                $crate::document::read($root, text, options)
            }

            fn to_element(&self) -> $crate::Element {
                $crate::xml::Content::write(self, $root)
            }
        }
    };
}

pub(crate) use document;
