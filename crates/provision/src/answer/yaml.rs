//! YAML with the places of its parts, for findings that name them.

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Findings, Place};

/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most parts, aliases counted as often as they are used.
const MAX_NODES: usize = 200_000;

/// A part of a document.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A scalar; `plain` if it was not quoted, so that it may be a number, a truth or null.
    Scalar {
        text: String,
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<(Node, Node)>),
}

impl Node {
    /// The value of a key; `None` also where this is no mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entries()
            .iter()
            .find(|(name, _)| name.text() == Some(key))
            .map(|(_, value)| value)
    }

    pub(super) fn entries(&self) -> &[(Node, Node)] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// A scalar's text; `None` for null too.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => None,
            Value::Scalar { text, .. } => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(super) fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Mapping(_))
    }

    pub(super) fn is_sequence(&self) -> bool {
        matches!(self.value, Value::Sequence(_))
    }

    /// A truth as PyYAML reads it.
    pub(super) fn truth(&self) -> Option<bool> {
        let Value::Scalar { text, plain: true } = &self.value else {
            return None;
        };
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" => Some(true),
            "false" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    /// What it is, for messages.
    pub(super) fn what(&self) -> &'static str {
        match self.value {
            Value::Scalar { .. } if self.is_null() => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }

    fn count(&self) -> usize {
        let below: usize = match &self.value {
            Value::Scalar { .. } => 0,
            Value::Sequence(items) => items.iter().map(Node::count).sum(),
            Value::Mapping(entries) => entries.iter().map(|(k, v)| k.count() + v.count()).sum(),
        };
        below + 1
    }
}

/// Reads one document. What is wrong becomes a finding, and there is no document then.
pub(super) fn read(text: &str, findings: &mut Findings) -> Option<Node> {
    let mut reader = Reader::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                let mark = error.marker();
                findings.error(
                    (mark.line(), mark.col() + 1),
                    format!("not YAML: {}", error.info()),
                    "check indentation, colons and quotes",
                );
                return None;
            }
        };
        let place = (span.start.line(), span.start.col() + 1);
        if let Err(message) = reader.take(event, place) {
            findings.error(place, message, "write it out in a simpler way");
            return None;
        }
    }
    let document = reader.document.unwrap_or(Node {
        place: (1, 1),
        value: Value::Mapping(Vec::new()),
    });
    repeated_keys(&document, findings);
    Some(document)
}

/// A key given twice: the programs that read these files take the last one in silence.
fn repeated_keys(node: &Node, findings: &mut Findings) {
    let mut seen = std::collections::HashMap::new();
    for (key, value) in node.entries() {
        if let Some(text) = key.text()
            && let Some(first) = seen.insert(text, key.place.0)
        {
            findings.error(
                key.place,
                format!("'{text}' stands in line {first} already; only the last would count"),
                "join the two",
            );
        }
        repeated_keys(value, findings);
    }
    for item in node.items() {
        repeated_keys(item, findings);
    }
}

#[derive(Default)]
struct Reader {
    open: Vec<(usize, Place, Open)>,
    anchors: std::collections::HashMap<usize, Node>,
    nodes: usize,
    document: Option<Node>,
    documents: usize,
}

enum Open {
    Sequence(Vec<Node>),
    Mapping(Vec<(Node, Node)>, Option<Node>),
}

impl Reader {
    fn take(&mut self, event: Event<'_>, place: Place) -> Result<(), &'static str> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = Value::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain,
                };
                self.finish(anchor, Node { place, value })
            }
            Event::SequenceStart(anchor, _) => {
                self.begin(anchor, place, Open::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, _) => {
                self.begin(anchor, place, Open::Mapping(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((anchor, place, open)) => {
                    let value = match open {
                        Open::Sequence(items) => Value::Sequence(items),
                        Open::Mapping(entries, _) => Value::Mapping(entries),
                    };
                    self.finish(anchor, Node { place, value })
                }
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or("an alias of what holds it")?;
                self.nodes += node.count();
                self.finish(0, node)
            }
            Event::DocumentStart(_) => {
                self.documents += 1;
                match self.documents {
                    1 => Ok(()),
                    _ => Err("a second document, which would not be read"),
                }
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, anchor: usize, place: Place, open: Open) -> Result<(), &'static str> {
        if self.open.len() >= MAX_DEPTH {
            return Err("nested over 64 deep");
        }
        self.open.push((anchor, place, open));
        Ok(())
    }

    fn finish(&mut self, anchor: usize, node: Node) -> Result<(), &'static str> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err("over 200,000 parts");
        }
        if anchor != 0 {
            self.nodes += node.count();
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.document = Some(node),
            Some((_, _, Open::Sequence(items))) => items.push(node),
            Some((_, _, Open::Mapping(entries, key))) => match key.take() {
                None => *key = Some(node),
                Some(key) => entries.push((key, node)),
            },
        }
        Ok(())
    }
}
