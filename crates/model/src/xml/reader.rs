//! Reading an element while keeping account of what has been read, so that nothing a document
//! says is dropped in silence.

use std::cell::RefCell;
use std::collections::HashMap;

use super::declare::{Content, Treatment};
use super::parse::{ReadOptions, position};
use super::tree::{Element, Kept, Node};
use super::value::Value;
use crate::error::{Error, Note, NoteKind, Place};

/// Notes kept for one document; a text made to provoke them cannot make more.
const MAX_NOTES: usize = 256;

/// What all readers of one document share.
pub(crate) struct Context<'t> {
    source: &'t str,
    strict: bool,
    notes: RefCell<Vec<Note>>,
}

impl<'t> Context<'t> {
    pub(crate) fn new(source: &'t str, options: &ReadOptions) -> Self {
        Self {
            source,
            strict: options.strict,
            notes: RefCell::new(Vec::new()),
        }
    }

    pub(crate) fn into_notes(self) -> Vec<Note> {
        self.notes.into_inner()
    }

    fn place(&self, path: &str, offset: usize) -> Place {
        let (line, column) = position(self.source, offset);
        Place {
            path: path.to_owned(),
            line,
            column,
        }
    }

    fn note(&self, kind: NoteKind, path: &str, offset: usize, text: &str) -> Result<(), Error> {
        let mut notes = self.notes.borrow_mut();
        if notes.len() > MAX_NOTES {
            return Ok(());
        }
        let (place, text) = if notes.len() == MAX_NOTES {
            (Place::default(), "more remarks than are kept".to_owned())
        } else {
            (self.place(path, offset), text.to_owned())
        };
        if self.strict && kind == NoteKind::Unknown {
            return Err(Error::Unknown { place });
        }
        notes.push(Note { kind, place, text });
        Ok(())
    }
}

/// One element being read.
pub(crate) struct Reader<'e> {
    element: &'e Element,
    context: &'e Context<'e>,
    path: String,
    attributes_read: Vec<bool>,
    children_read: Vec<bool>,
    text_read: bool,
}

impl<'e> Reader<'e> {
    pub(crate) fn root(element: &'e Element, context: &'e Context<'e>) -> Self {
        Self::at(element, context, format!("/{}", element.name))
    }

    fn at(element: &'e Element, context: &'e Context<'e>, path: String) -> Self {
        Self {
            element,
            context,
            path,
            attributes_read: vec![false; element.attributes.len()],
            children_read: vec![false; element.children.len()],
            text_read: false,
        }
    }

    /// The element itself, for parts that are kept as they are.
    pub(crate) fn element(&self) -> &'e Element {
        self.element
    }

    /// This element's place.
    pub(crate) fn place(&self) -> Place {
        self.context.place(&self.path, self.element.offset)
    }

    fn place_of(&self, step: &str) -> Place {
        let mut path = self.path.clone();
        if !step.is_empty() {
            path.push('/');
            path.push_str(step);
        }
        self.context.place(&path, self.element.offset)
    }

    /// Adds a remark about this element (empty step) or what `step` names in it.
    pub(crate) fn note(
        &self,
        kind: NoteKind,
        step: &str,
        text: impl AsRef<str>,
    ) -> Result<(), Error> {
        let path = if step.is_empty() {
            self.path.clone()
        } else {
            format!("{}/{step}", self.path)
        };
        self.context
            .note(kind, &path, self.element.offset, text.as_ref())
    }

    /// The error that what `step` names cannot be honoured.
    pub(crate) fn unsupported(&self, step: &str, reason: impl Into<String>) -> Error {
        Error::Unsupported {
            place: self.place_of(step),
            reason: reason.into(),
        }
    }

    /// The error that what `step` names is not there.
    pub(crate) fn missing(&self, what: impl Into<String>) -> Error {
        Error::Missing {
            place: self.place(),
            what: what.into(),
        }
    }

    /// The error that the value of what `step` names cannot be.
    pub(crate) fn invalid(&self, step: &str, value: &str, reason: impl Into<String>) -> Error {
        Error::Invalid {
            place: self.place_of(step),
            value: value.chars().take(200).collect(),
            reason: reason.into(),
        }
    }

    /// The attribute's text.
    pub(crate) fn attribute(&mut self, name: &str) -> Option<&'e str> {
        let at = self
            .element
            .attributes
            .iter()
            .position(|attribute| attribute.name == name)?;
        if let Some(read) = self.attributes_read.get_mut(at) {
            *read = true;
        }
        self.element
            .attributes
            .get(at)
            .map(|attribute| attribute.value.as_str())
    }

    /// The attribute's value.
    pub(crate) fn attribute_value<T: Value>(&mut self, name: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.attribute(name) else {
            return Ok(None);
        };
        T::parse(text)
            .map(Some)
            .map_err(|reason| self.invalid(&format!("@{name}"), text, reason))
    }

    /// The text in this element, with white space around it.
    pub(crate) fn text(&mut self) -> String {
        self.text_read = true;
        self.element.text()
    }

    /// The text in this element as a value.
    pub(crate) fn text_value<T: Value>(&mut self) -> Result<T, Error> {
        let text = self.text();
        T::parse_text(&text).map_err(|reason| self.invalid("", text.trim(), reason))
    }

    /// Readers for all children of that name.
    pub(crate) fn children(&mut self, name: &str) -> Vec<Reader<'e>> {
        let mut found = Vec::new();
        for (at, node) in self.element.children.iter().enumerate() {
            if let Node::Element(child) = node
                && child.name == name
            {
                if let Some(read) = self.children_read.get_mut(at) {
                    *read = true;
                }
                found.push(child);
            }
        }
        let several = found.len() > 1;
        found
            .into_iter()
            .enumerate()
            .map(|(index, child)| {
                let number = index.saturating_add(1);
                let path = if several {
                    format!("{}/{name}[{number}]", self.path)
                } else {
                    format!("{}/{name}", self.path)
                };
                Reader::at(child, self.context, path)
            })
            .collect()
    }

    /// A reader for the one child of that name.
    pub(crate) fn child(&mut self, name: &str) -> Result<Option<Reader<'e>>, Error> {
        let mut children = self.children(name).into_iter();
        let first = children.next();
        match children.next() {
            Some(second) => Err(Error::Repeated {
                place: second.place(),
            }),
            None => Ok(first),
        }
    }

    /// The one child of that name.
    pub(crate) fn child_content<T: Content>(&mut self, name: &str) -> Result<Option<T>, Error> {
        self.child(name)?.map(T::read).transpose()
    }

    /// Judges what was not read by the table, and gives back what is to be kept.
    pub(crate) fn finish(self, known: &[(&str, Treatment)]) -> Result<Kept, Error> {
        let mut kept = Kept::default();
        for (attribute, read) in self.element.attributes.iter().zip(&self.attributes_read) {
            let step = format!("@{}", attribute.name);
            let treatment = lookup(known, &step);
            if *read && treatment.is_none() {
                continue;
            }
            if let Some(prefix) = attribute.name.strip_prefix("xmlns:") {
                // Parts in a foreign namespace carry its declaration with them.
                if declaration_is_needed(self.element, prefix) {
                    kept.attributes.push(attribute.clone());
                }
                continue;
            }
            let path = format!("{}/{step}", self.path);
            self.judge(treatment, "attribute", &path, self.element.offset)?;
            if !*read {
                kept.attributes.push(attribute.clone());
            }
        }
        let mut totals: HashMap<&str, usize> = HashMap::new();
        for child in self.element.elements() {
            let total = totals.entry(&child.name).or_default();
            *total = total.saturating_add(1);
        }
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for (node, read) in self.element.children.iter().zip(&self.children_read) {
            match node {
                Node::Element(child) => {
                    let count = counts.entry(&child.name).or_default();
                    *count = count.saturating_add(1);
                    let treatment = lookup(known, &child.name);
                    if *read && treatment.is_none() {
                        continue;
                    }
                    let several = totals.get(child.name.as_str()).is_some_and(|n| *n > 1);
                    let index = if several {
                        format!("[{count}]")
                    } else {
                        String::new()
                    };
                    let path = format!("{}/{}{index}", self.path, child.name);
                    self.judge(treatment, "element", &path, child.offset)?;
                    if !*read {
                        kept.elements.push(child.clone());
                    }
                }
                Node::Text(text) if !self.text_read && !text.trim().is_empty() => {
                    let shown: String = text.trim().chars().take(40).collect();
                    self.note(
                        NoteKind::Unknown,
                        "text()",
                        format!("text '{shown}' has no meaning here and is not kept"),
                    )?;
                }
                _ => {}
            }
        }
        Ok(kept)
    }

    /// [`Self::finish`] for elements that have no place to keep anything in.
    pub(crate) fn finish_bare(self) -> Result<(), Error> {
        let context = self.context;
        let path = self.path.clone();
        let offset = self.element.offset;
        let kept = self.finish(&[])?;
        if !kept.is_empty() {
            context.note(
                NoteKind::Unknown,
                &path,
                offset,
                "the parts of it that are not known are not kept",
            )?;
        }
        Ok(())
    }

    fn judge(
        &self,
        treatment: Option<Treatment>,
        sort: &str,
        path: &str,
        offset: usize,
    ) -> Result<(), Error> {
        match treatment {
            Some(Treatment::Refused(reason)) => Err(Error::Unsupported {
                place: self.context.place(path, offset),
                reason: reason.to_owned(),
            }),
            Some(Treatment::Inert(reason)) => {
                self.context.note(NoteKind::Inert, path, offset, reason)
            }
            Some(Treatment::Mapped(reason)) => {
                self.context.note(NoteKind::Mapped, path, offset, reason)
            }
            None => self.context.note(
                NoteKind::Unknown,
                path,
                offset,
                &format!("unknown {sort}; kept, without effect"),
            ),
        }
    }
}

/// Whether an attribute in this namespace stands on an element that is in none.
fn declaration_is_needed(element: &Element, prefix: &str) -> bool {
    if element.name.contains(':') {
        return false;
    }
    let uses = |name: &str| {
        name.split_once(':')
            .is_some_and(|(found, _)| found == prefix)
    };
    element.attributes.iter().any(|a| uses(&a.name))
        || element
            .elements()
            .any(|child| declaration_is_needed(child, prefix))
}

fn lookup(known: &[(&str, Treatment)], name: &str) -> Option<Treatment> {
    known
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, treatment)| *treatment)
}
