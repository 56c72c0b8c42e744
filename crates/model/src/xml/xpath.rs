//! XPath 1.0 over documents, for `--xpath`.
//!
//! `xpath-eval` evaluates; this gives it the tree and takes its answer apart.

use std::cmp::Ordering;

use xpath_eval::{EvaluationContext, ExpandedName, NodeKind, Value, evaluate};

use super::tree::{Element, Node as TreeNode};
use crate::error::Error;

/// Longest expression in bytes.
const MAX_EXPRESSION: usize = 1024;
/// Deepest brackets, and most minus signs, that the recursive parser is given.
const MAX_NESTING: usize = 32;

/// What an expression selects.
#[derive(Debug, Clone, PartialEq)]
pub enum Selection {
    /// Nodes in document order; none is no error.
    Nodes(Vec<Selected>),
    /// The text of a string, number or boolean expression, as `count(//disk)`.
    Text(String),
}

/// A selected node.
#[derive(Debug, Clone, PartialEq)]
pub enum Selected {
    /// An element, with all in it.
    Element(Element),
    /// An attribute.
    Attribute {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Text, a comment, or the like.
    Text(String),
}

impl Selected {
    /// As `--xpath` prints it: elements as XML, attributes and texts as their value.
    pub fn print(&self) -> String {
        match self {
            Self::Element(element) => element.to_string().trim_end().to_owned(),
            Self::Attribute { value, .. } => value.clone(),
            Self::Text(text) => text.clone(),
        }
    }
}

impl Selection {
    /// As `--xpath` prints it: one line or more for each node, nothing for no nodes.
    pub fn print(&self) -> String {
        match self {
            Self::Nodes(nodes) => nodes.iter().map(|node| node.print() + "\n").collect(),
            Self::Text(text) => format!("{text}\n"),
        }
    }

    /// As `--wrap` prints it: the nodes as children of one `<nodes>`.
    pub fn print_wrapped(&self) -> String {
        let mut nodes = Element::new("nodes");
        let texts = match self {
            Self::Nodes(selected) => selected.as_slice(),
            Self::Text(text) => &[Selected::Text(text.clone())],
        };
        for selected in texts {
            let child = match selected {
                Selected::Element(element) => element.clone(),
                Selected::Attribute { name, value } => Element::new(name).with_text(value),
                Selected::Text(text) => Element::new("text").with_text(text),
            };
            nodes.children.push(TreeNode::Element(child));
        }
        nodes.to_string()
    }
}

/// Evaluates `expression` with the document's root as context. Prefixes in the expression mean
/// what the document's first declaration of them says.
///
/// # Errors
/// [`Error::XPath`] if it is no XPath 1.0 expression, or one over 1024 bytes or
/// 32 brackets deep.
pub fn select(root: &Element, expression: &str) -> Result<Selection, Error> {
    let fail = |message: String| Error::XPath {
        expression: expression.chars().take(200).collect(),
        message,
    };
    if expression.len() > MAX_EXPRESSION {
        return Err(fail(format!("longer than {MAX_EXPRESSION} bytes")));
    }
    if nesting(expression) > MAX_NESTING {
        return Err(fail(format!("nested more than {MAX_NESTING} deep")));
    }
    let parsed = xpath_eval::parse(expression).map_err(|error| fail(error.to_string()))?;
    let tree = Tree::new(root);
    let resolve = |prefix: &str| tree.namespace_of_prefix(prefix);
    let mut context = EvaluationContext::new(Handle {
        tree: &tree,
        index: 0,
    });
    context.namespaces = Some(&resolve);
    let value = evaluate(&parsed, &context).map_err(|error| fail(error.to_string()))?;
    Ok(match value {
        Value::NodeSet(nodes) => {
            let mut nodes: Vec<_> = nodes.into_iter().collect();
            nodes.sort_by_key(|node| node.index);
            nodes.dedup_by_key(|node| node.index);
            Selection::Nodes(nodes.into_iter().map(Handle::selected).collect())
        }
        other => Selection::Text(other.to_xpath_string()),
    })
}

/// How deep a recursive parser goes for the expression, at most.
fn nesting(expression: &str) -> usize {
    let mut depth = 0usize;
    let mut deepest = 0usize;
    let mut signs = 0usize;
    for byte in expression.bytes() {
        match byte {
            b'(' | b'[' => depth = depth.saturating_add(1),
            b')' | b']' => depth = depth.saturating_sub(1),
            b'-' => signs = signs.saturating_add(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest.max(signs)
}

enum Kind<'e> {
    Root(&'e Element),
    Element(&'e Element),
    Attribute(&'e str, &'e str),
    Text(&'e str),
    Comment(&'e str),
    Instruction(&'e str),
}

struct Entry<'e> {
    kind: Kind<'e>,
    namespace: Option<&'e str>,
    parent: Option<usize>,
    attributes: Vec<usize>,
    children: Vec<usize>,
}

/// The document as an arena in document order: index order is node order.
struct Tree<'e> {
    entries: Vec<Entry<'e>>,
    prefixes: Vec<(&'e str, &'e str)>,
}

impl<'e> Tree<'e> {
    fn new(root: &'e Element) -> Self {
        let mut tree = Self {
            entries: Vec::new(),
            prefixes: Vec::new(),
        };
        let top = tree.push(Kind::Root(root), None, None);
        let child = tree.add(root, top, &mut Vec::new());
        tree.child(top, child);
        tree
    }

    fn push(&mut self, kind: Kind<'e>, namespace: Option<&'e str>, parent: Option<usize>) -> usize {
        self.entries.push(Entry {
            kind,
            namespace,
            parent,
            attributes: Vec::new(),
            children: Vec::new(),
        });
        self.entries.len().saturating_sub(1)
    }

    fn child(&mut self, parent: usize, child: usize) {
        if let Some(entry) = self.entries.get_mut(parent) {
            entry.children.push(child);
        }
    }

    fn add(
        &mut self,
        element: &'e Element,
        parent: usize,
        scope: &mut Vec<(&'e str, &'e str)>,
    ) -> usize {
        let depth = scope.len();
        for attribute in &element.attributes {
            if let Some(prefix) = declared_prefix(&attribute.name) {
                scope.push((prefix, &attribute.value));
                self.prefixes.push((prefix, &attribute.value));
            }
        }
        let own = split(&element.name).0;
        let index = self.push(Kind::Element(element), lookup(scope, own), Some(parent));
        for attribute in &element.attributes {
            if declared_prefix(&attribute.name).is_some() {
                continue;
            }
            let (prefix, local) = split(&attribute.name);
            let namespace = if prefix.is_empty() {
                None
            } else {
                lookup(scope, prefix)
            };
            let kind = Kind::Attribute(local, &attribute.value);
            let at = self.push(kind, namespace, Some(index));
            if let Some(entry) = self.entries.get_mut(index) {
                entry.attributes.push(at);
            }
        }
        for node in &element.children {
            let at = match node {
                TreeNode::Element(child) => self.add(child, index, scope),
                TreeNode::Text(text) => self.push(Kind::Text(text), None, Some(index)),
                TreeNode::Comment(text) => self.push(Kind::Comment(text), None, Some(index)),
                TreeNode::Instruction(text) => {
                    self.push(Kind::Instruction(text), None, Some(index))
                }
            };
            self.child(index, at);
        }
        scope.truncate(depth);
        index
    }

    fn namespace_of_prefix(&self, prefix: &str) -> Option<String> {
        lookup_first(&self.prefixes, prefix).map(str::to_owned)
    }
}

/// The prefix that an attribute declares; empty for the default namespace.
fn declared_prefix(name: &str) -> Option<&str> {
    match name.strip_prefix("xmlns") {
        Some("") => Some(""),
        Some(rest) => rest.strip_prefix(':'),
        None => None,
    }
}

fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or(("", name))
}

fn lookup<'e>(scope: &[(&'e str, &'e str)], prefix: &str) -> Option<&'e str> {
    scope
        .iter()
        .rev()
        .find(|(known, _)| *known == prefix)
        .map(|(_, uri)| *uri)
        .filter(|uri| !uri.is_empty())
}

fn lookup_first<'e>(prefixes: &[(&'e str, &'e str)], prefix: &str) -> Option<&'e str> {
    prefixes
        .iter()
        .find(|(known, _)| *known == prefix)
        .map(|(_, uri)| *uri)
}

#[derive(Clone, Copy)]
struct Handle<'t> {
    tree: &'t Tree<'t>,
    index: usize,
}

impl PartialEq for Handle<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

impl Eq for Handle<'_> {}

impl<'t> Handle<'t> {
    fn entry(self) -> Option<&'t Entry<'t>> {
        self.tree.entries.get(self.index)
    }

    fn at(self, index: usize) -> Self {
        Self { index, ..self }
    }

    fn selected(self) -> Selected {
        match self.entry().map(|entry| &entry.kind) {
            Some(Kind::Root(element) | Kind::Element(element)) => {
                Selected::Element((*element).clone())
            }
            Some(Kind::Attribute(name, value)) => Selected::Attribute {
                name: (*name).to_owned(),
                value: (*value).to_owned(),
            },
            Some(Kind::Text(text) | Kind::Comment(text) | Kind::Instruction(text)) => {
                Selected::Text((*text).to_owned())
            }
            None => Selected::Text(String::new()),
        }
    }
}

fn collect_text(element: &Element, out: &mut String) {
    for node in &element.children {
        match node {
            TreeNode::Element(child) => collect_text(child, out),
            TreeNode::Text(text) => out.push_str(text),
            TreeNode::Comment(_) | TreeNode::Instruction(_) => {}
        }
    }
}

impl<'t> xpath_eval::Node<'t> for Handle<'t> {
    fn kind(self) -> NodeKind {
        match self.entry().map(|entry| &entry.kind) {
            Some(Kind::Element(_)) => NodeKind::Element,
            Some(Kind::Attribute(..)) => NodeKind::Attribute,
            Some(Kind::Text(_)) => NodeKind::Text,
            Some(Kind::Comment(_)) => NodeKind::Comment,
            Some(Kind::Instruction(_)) => NodeKind::ProcessingInstruction,
            Some(Kind::Root(_)) | None => NodeKind::Root,
        }
    }

    fn parent(self) -> Option<Self> {
        self.entry()?.parent.map(|parent| self.at(parent))
    }

    fn children(self) -> impl Iterator<Item = Self> + 't {
        self.entry()
            .into_iter()
            .flat_map(|entry| entry.children.iter())
            .map(move |index| self.at(*index))
    }

    fn attributes(self) -> impl Iterator<Item = Self> + 't {
        self.entry()
            .into_iter()
            .flat_map(|entry| entry.attributes.iter())
            .map(move |index| self.at(*index))
    }

    /// Namespace nodes are not offered: nothing in a document is found by them.
    fn namespaces(self) -> impl Iterator<Item = Self> + 't {
        std::iter::empty()
    }

    fn expanded_name(self) -> Option<ExpandedName> {
        let entry = self.entry()?;
        let local = match entry.kind {
            Kind::Element(element) => split(&element.name).1,
            Kind::Attribute(name, _) => name,
            Kind::Instruction(content) => content.split_whitespace().next().unwrap_or_default(),
            Kind::Root(_) | Kind::Text(_) | Kind::Comment(_) => return None,
        };
        Some(ExpandedName {
            namespace_uri: entry.namespace.map(str::to_owned),
            local_name: local.to_owned(),
        })
    }

    fn string_value(self) -> String {
        match self.entry().map(|entry| &entry.kind) {
            Some(Kind::Root(element) | Kind::Element(element)) => {
                let mut out = String::new();
                collect_text(element, &mut out);
                out
            }
            Some(Kind::Attribute(_, text) | Kind::Text(text) | Kind::Comment(text)) => {
                (*text).to_owned()
            }
            Some(Kind::Instruction(content)) => content
                .split_once(char::is_whitespace)
                .map_or_else(String::new, |(_, value)| value.to_owned()),
            None => String::new(),
        }
    }

    fn document_order(self, other: Self) -> Ordering {
        self.index.cmp(&other.index)
    }
}
