//! The printer: libvirt's layout, so that a document printed twice is the same bytes.
//!
//! Two spaces a level, attributes in single quotes, elements without content closed at once,
//! text on the line of its tags. Below `<metadata>`, which belongs to others, content is printed
//! with the white space it came with.

use std::fmt;

use super::tree::{Element, Node};

impl fmt::Display for Element {
    /// The element as a document of its own, ending in a line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = String::new();
        pretty(self, 0, &mut out);
        f.write_str(&out)
    }
}

fn pretty(element: &Element, level: usize, out: &mut String) {
    indent(level, out);
    let mixed = element
        .children
        .iter()
        .any(|node| matches!(node, Node::Text(text) if !text.trim().is_empty()));
    let leaf = !element
        .children
        .iter()
        .any(|node| !matches!(node, Node::Text(_)));
    if mixed || leaf {
        verbatim(element, Quotes::Escaped, out);
        out.push('\n');
        return;
    }
    start_tag(element, out);
    out.push_str(">\n");
    for node in &element.children {
        match node {
            Node::Element(child) if element.name == "metadata" => {
                indent(level.saturating_add(1), out);
                verbatim(child, Quotes::Plain, out);
                out.push('\n');
            }
            Node::Element(child) => pretty(child, level.saturating_add(1), out),
            Node::Text(_) => {}
            other => {
                indent(level.saturating_add(1), out);
                markup(other, out);
                out.push('\n');
            }
        }
    }
    indent(level, out);
    end_tag(element, out);
    out.push('\n');
}

/// Whether quotes in text are escaped, as libvirt's own printer does and libxml2's does not.
#[derive(Clone, Copy, PartialEq)]
enum Quotes {
    Escaped,
    Plain,
}

fn verbatim(element: &Element, quotes: Quotes, out: &mut String) {
    start_tag(element, out);
    if element.children.is_empty() {
        out.push_str("/>");
        return;
    }
    out.push('>');
    for node in &element.children {
        match node {
            Node::Element(child) => verbatim(child, quotes, out),
            Node::Text(text) => escape_text(text, quotes, out),
            other => markup(other, out),
        }
    }
    end_tag(element, out);
}

fn markup(node: &Node, out: &mut String) {
    let (open, content, close) = match node {
        Node::Comment(comment) => ("<!--", comment, "-->"),
        Node::Instruction(content) => ("<?", content, "?>"),
        Node::Element(_) | Node::Text(_) => return,
    };
    out.push_str(open);
    out.push_str(content);
    out.push_str(close);
}

fn start_tag(element: &Element, out: &mut String) {
    out.push('<');
    out.push_str(&element.name);
    for attribute in &element.attributes {
        out.push(' ');
        out.push_str(&attribute.name);
        out.push_str("='");
        escape_attribute(&attribute.value, out);
        out.push('\'');
    }
}

fn end_tag(element: &Element, out: &mut String) {
    out.push_str("</");
    out.push_str(&element.name);
    out.push('>');
}

fn indent(level: usize, out: &mut String) {
    for _ in 0..level {
        out.push_str("  ");
    }
}

fn escape_text(text: &str, quotes: Quotes, out: &mut String) {
    for c in text.chars() {
        match c {
            '"' | '\'' if quotes == Quotes::Plain => out.push(c),
            '\n' | '\t' => out.push(c),
            _ => escape(c, out),
        }
    }
}

fn escape_attribute(text: &str, out: &mut String) {
    for c in text.chars() {
        escape(c, out);
    }
}

fn escape(c: char, out: &mut String) {
    match c {
        '&' => out.push_str("&amp;"),
        '<' => out.push_str("&lt;"),
        '>' => out.push_str("&gt;"),
        '\'' => out.push_str("&apos;"),
        '"' => out.push_str("&quot;"),
        '\n' => out.push_str("&#10;"),
        '\t' => out.push_str("&#9;"),
        '\r' => out.push_str("&#13;"),
        // No escape exists in XML 1.0 for the rest of the control characters.
        '\u{0}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
        _ => out.push(c),
    }
}
