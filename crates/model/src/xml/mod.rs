//! XML in and out: a bounded tree, a printer with libvirt's layout, and the declarations from
//! which every document's reader and writer come.

mod declare;
mod parse;
mod print;
mod reader;
mod tree;
mod value;
pub mod xpath;

pub(crate) use declare::{
    AttributeField, ChildField, Content, LeafField, Present, Treatment, element, read_flag, values,
};
pub(crate) use parse::first_element;
pub use parse::{ReadOptions, parse};
pub(crate) use reader::{Context, Reader};
pub use tree::{Attribute, Element, Kept, Node};
pub(crate) use value::Value;
pub use value::{Hex, Metadata, OnOff, YesNo};
