//! Text into tree, within bounds.
//!
//! A first scan over the bytes bounds size, depth, attributes and namespaces and refuses document
//! types, before anything is allocated in proportion to the text; then `roxmltree` checks that
//! the text is well-formed.

use roxmltree::{Document, NodeType, ParsingOptions};

use super::tree::{Attribute, Element, Node};
use crate::error::Error;

/// Attributes that one element may have.
const MAX_ATTRIBUTES: usize = 256;
/// Namespace declarations that one document may have.
const MAX_NAMESPACES: usize = 256;
/// Elements, texts and comments that one document may have.
const MAX_NODES: u32 = 1 << 18;

/// How to read a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadOptions {
    /// Refuse what is not known instead of keeping it with a note.
    pub strict: bool,
    /// Longest text accepted, in bytes.
    pub max_bytes: usize,
    /// Deepest nesting accepted.
    pub max_depth: usize,
}

impl Default for ReadOptions {
    /// Not strict, 16 MiB, 128 levels.
    fn default() -> Self {
        Self {
            strict: false,
            max_bytes: 16 << 20,
            max_depth: 128,
        }
    }
}

impl ReadOptions {
    /// The defaults, but what is not known is an error.
    pub fn strict() -> Self {
        Self {
            strict: true,
            ..Self::default()
        }
    }
}

/// Line and column, both from 1, of a byte offset. Columns count characters, but bytes on lines
/// so long that counting would cost.
pub(crate) fn position(text: &str, offset: usize) -> (u32, u32) {
    let before = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    let line = before.iter().filter(|byte| **byte == b'\n').count();
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at.saturating_add(1));
    let column = text
        .get(start..before.len())
        .map_or(0, |line| line.chars().count());
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).saturating_add(1);
    (number(line), number(column))
}

/// Reads a text into its root element.
///
/// Comments and processing instructions are kept below `<metadata>` and dropped elsewhere, as is
/// white space between elements. CDATA sections become text.
///
/// # Errors
/// [`Error::TooLarge`], [`Error::TooMany`], [`Error::DocumentType`] and [`Error::Syntax`].
pub fn parse(text: &str, options: &ReadOptions) -> Result<Element, Error> {
    if text.len() > options.max_bytes {
        return Err(Error::TooLarge {
            size: text.len(),
            limit: options.max_bytes,
        });
    }
    scan(text, options)?;
    let parsing = ParsingOptions {
        nodes_limit: MAX_NODES,
        ..ParsingOptions::default()
    };
    let document =
        Document::parse_with_options(text, parsing).map_err(|error| syntax(text, &error))?;
    Ok(convert(document.root_element(), Inside::default()))
}

fn syntax(text: &str, error: &roxmltree::Error) -> Error {
    if matches!(error, roxmltree::Error::NodesLimitReached) {
        return Error::TooMany {
            what: "elements and texts",
            limit: MAX_NODES as usize,
            line: 0,
            column: 0,
        };
    }
    let at = error.pos();
    let message = error.to_string();
    // The parser's own messages end in the position, which stands in a field here.
    let suffix = format!(" at {at}");
    let message = message.strip_suffix(&suffix).unwrap_or(&message).to_owned();
    let (line, column) = match error {
        roxmltree::Error::NoRootNode | roxmltree::Error::UnclosedRootNode => {
            position(text, text.len())
        }
        _ => (at.row, at.col),
    };
    Error::Syntax {
        line,
        column,
        message,
    }
}

/// The name of the first element in the text, whether or not the rest can be read.
pub(crate) fn first_element(text: &str) -> Option<&str> {
    let mut rest = text;
    loop {
        let at = rest.find('<')?;
        rest = rest.get(at.checked_add(1)?..)?;
        let skip = if let Some(comment) = rest.strip_prefix("!--") {
            comment.get(comment.find("-->")?..)?
        } else if rest.starts_with(['?', '!']) {
            rest.get(rest.find('>')?..)?
        } else {
            let end = rest
                .find(|c: char| c.is_whitespace() || c == '>' || c == '/')
                .unwrap_or(rest.len());
            return rest.get(..end);
        };
        rest = skip;
    }
}

/// Bounds the text's shape. It need not be well-formed; what this misjudges is refused later.
fn scan(text: &str, options: &ReadOptions) -> Result<(), Error> {
    let bytes = text.as_bytes();
    let mut depth = 0usize;
    let mut namespaces = 0usize;
    let mut at = 0usize;
    let fail = |what, limit, at| {
        let (line, column) = position(text, at);
        Err(Error::TooMany {
            what,
            limit,
            line,
            column,
        })
    };
    while let Some(found) = find(bytes, at, b"<") {
        let rest = bytes.get(found..).unwrap_or_default();
        let skip_to = |end: &[u8]| find(bytes, found, end).map(|e| e.saturating_add(end.len()));
        let end = if rest.starts_with(b"<!--") {
            skip_to(b"-->")
        } else if rest.starts_with(b"<![CDATA[") {
            skip_to(b"]]>")
        } else if rest.starts_with(b"<?") {
            skip_to(b"?>")
        } else if rest.starts_with(b"<!") {
            let (line, column) = position(text, found);
            return Err(Error::DocumentType { line, column });
        } else if rest.starts_with(b"</") {
            depth = depth.saturating_sub(1);
            skip_to(b">")
        } else {
            let tag = tag(rest);
            if tag.attributes > MAX_ATTRIBUTES {
                return fail("attributes on one element", MAX_ATTRIBUTES, found);
            }
            namespaces = namespaces.saturating_add(tag.namespaces);
            if namespaces > MAX_NAMESPACES {
                return fail("namespace declarations", MAX_NAMESPACES, found);
            }
            if !tag.empty {
                depth = depth.saturating_add(1);
            }
            if depth > options.max_depth {
                return fail("levels of nesting", options.max_depth, found);
            }
            found.checked_add(tag.length)
        };
        match end {
            Some(end) => at = end,
            None => return Ok(()),
        }
    }
    Ok(())
}

fn find(bytes: &[u8], from: usize, needle: &[u8]) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let (first, others) = needle.split_first()?;
    let mut at = 0usize;
    loop {
        let step = rest.get(at..)?.iter().position(|byte| byte == first)?;
        at = at.checked_add(step)?;
        let after = at.checked_add(1)?;
        if rest.get(after..)?.starts_with(others) {
            return from.checked_add(at);
        }
        at = after;
    }
}

struct Tag {
    length: usize,
    attributes: usize,
    namespaces: usize,
    empty: bool,
}

/// Measures a start tag, quotes respected.
fn tag(bytes: &[u8]) -> Tag {
    let mut tag = Tag {
        length: bytes.len(),
        attributes: 0,
        namespaces: 0,
        empty: false,
    };
    let mut quote = None;
    let mut last = 0u8;
    for (at, byte) in bytes.iter().copied().enumerate() {
        match (quote, byte) {
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'\'' | b'"') => quote = Some(byte),
            (None, b'=') => {
                tag.attributes = tag.attributes.saturating_add(1);
                let name = bytes.get(..at).unwrap_or_default().trim_ascii_end();
                let start = name
                    .iter()
                    .rposition(u8::is_ascii_whitespace)
                    .map_or(0, |space| space.saturating_add(1));
                if name.get(start..).is_some_and(|n| n.starts_with(b"xmlns")) {
                    tag.namespaces = tag.namespaces.saturating_add(1);
                }
                if tag.attributes > MAX_ATTRIBUTES {
                    return tag;
                }
            }
            (None, b'>') => {
                tag.empty = last == b'/';
                tag.length = at.saturating_add(1);
                return tag;
            }
            (None, _) => {}
        }
        last = byte;
    }
    tag
}

/// What an element stands in.
#[derive(Clone, Copy, Default)]
struct Inside {
    /// Below a child of `<metadata>`.
    verbatim: bool,
    /// Below an element that carries the namespaces its content uses.
    carried: bool,
}

fn convert(node: roxmltree::Node<'_, '_>, inside: Inside) -> Element {
    let source = node.document().input_text();
    let offset = node.range().start;
    let mut element = Element {
        name: qualified_name(source, offset),
        offset,
        ..Element::default()
    };
    let carried = declare_namespaces(node, inside.carried, &mut element);
    for attribute in node.attributes() {
        let name = source.get(attribute.range_qname()).unwrap_or_default();
        element.attributes.push(Attribute {
            name: name.to_owned(),
            value: attribute.value().to_owned(),
        });
    }
    let verbatim = inside.verbatim || element.name == "metadata";
    let below = Inside { verbatim, carried };
    for child in node.children() {
        match child.node_type() {
            NodeType::Element => element.children.push(Node::Element(convert(child, below))),
            NodeType::Text => push_text(&mut element, child.text().unwrap_or_default()),
            NodeType::Comment if verbatim => element
                .children
                .push(Node::Comment(child.text().unwrap_or_default().to_owned())),
            NodeType::PI if verbatim => {
                let content = child.pi().map(|pi| match pi.value {
                    Some(value) => format!("{} {value}", pi.target),
                    None => pi.target.to_owned(),
                });
                element
                    .children
                    .push(Node::Instruction(content.unwrap_or_default()));
            }
            NodeType::Comment | NodeType::PI | NodeType::Root => {}
        }
    }
    if !inside.verbatim {
        drop_layout(&mut element);
    }
    element
}

/// Adjacent texts (around a dropped comment, or CDATA beside text) are one.
fn push_text(element: &mut Element, text: &str) {
    match element.children.last_mut() {
        Some(Node::Text(last)) => last.push_str(text),
        _ if text.is_empty() => {}
        _ => element.children.push(Node::Text(text.to_owned())),
    }
}

/// Drops white space that only lays out other nodes.
fn drop_layout(element: &mut Element) {
    let blank = |node: &Node| matches!(node, Node::Text(text) if text.trim().is_empty());
    let others = element
        .children
        .iter()
        .any(|node| !matches!(node, Node::Text(_)));
    let mixed = element
        .children
        .iter()
        .any(|node| matches!(node, Node::Text(_)) && !blank(node));
    if others && !mixed {
        element.children.retain(|node| !blank(node));
    }
}

fn qualified_name(source: &str, offset: usize) -> String {
    let rest = source.get(offset.saturating_add(1)..).unwrap_or_default();
    let end = rest
        .find(|c: char| c.is_whitespace() || c == '>' || c == '/')
        .unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default().to_owned()
}

/// Adds the declarations made on this element; and, where a part in a foreign namespace begins,
/// those it uses from above, so that it can be kept and printed on its own.
/// Says whether this or an element above it carries them.
fn declare_namespaces(
    node: roxmltree::Node<'_, '_>,
    carried_above: bool,
    element: &mut Element,
) -> bool {
    let parent = node.parent().filter(roxmltree::Node::is_element);
    let foreign = |n: &roxmltree::Node<'_, '_>| n.tag_name().namespace().is_some();
    let border = !carried_above && foreign(&node) && parent.is_some();
    for namespace in node.namespaces() {
        let inherited = parent.is_some_and(|p| {
            p.namespaces()
                .any(|n| n.name() == namespace.name() && n.uri() == namespace.uri())
        });
        let carried = border && uses_prefix(node, namespace.name());
        if namespace.name() == Some("xml") || (inherited && !carried) {
            continue;
        }
        let name = namespace
            .name()
            .map_or_else(|| "xmlns".to_owned(), |prefix| format!("xmlns:{prefix}"));
        element.attributes.push(Attribute {
            name,
            value: namespace.uri().to_owned(),
        });
    }
    carried_above || border
}

fn uses_prefix(node: roxmltree::Node<'_, '_>, prefix: Option<&str>) -> bool {
    let source = node.document().input_text();
    let has = |name: &str| match (prefix, name.split_once(':')) {
        (Some(prefix), Some((found, _))) => found == prefix,
        (None, None) => true,
        _ => false,
    };
    node.descendants().filter(|n| n.is_element()).any(|n| {
        has(&qualified_name(source, n.range().start))
            || n.attributes()
                .any(|a| prefix.is_some() && has(source.get(a.range_qname()).unwrap_or_default()))
    })
}
