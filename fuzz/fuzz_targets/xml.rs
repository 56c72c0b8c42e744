//! Any bytes as each kind of document: refused, or printed so that reading gives the same again.
#![no_main]

use std::fmt::Debug;

use cenote_model::capabilities::{Capabilities, DomainCapabilities};
use cenote_model::domain::Domain;
use cenote_model::network::Network;
use cenote_model::pool::Pool;
use cenote_model::snapshot::Snapshot;
use cenote_model::volume::Volume;
use cenote_model::xpath::select;
use cenote_model::{Document, ReadOptions, parse};
use libfuzzer_sys::fuzz_target;

fn stable<T: Document + PartialEq + Debug>(text: &str) {
    let options = ReadOptions::default();
    let Ok(first) = T::from_xml(text, &options) else {
        return;
    };
    let printed = first.document.to_xml();
    let again = T::from_xml(&printed, &options).expect("what is printed is read");
    assert_eq!(again.document, first.document);
    assert_eq!(again.document.to_xml(), printed);
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    stable::<Pool>(text);
    stable::<Volume>(text);
    stable::<Domain>(text);
    stable::<Network>(text);
    stable::<Snapshot>(text);
    stable::<Capabilities>(text);
    stable::<DomainCapabilities>(text);
    // A first line that is an XPath expression over the rest.
    if let Some((expression, document)) = text.split_once('\n')
        && let Ok(root) = parse(document, &ReadOptions::default())
    {
        let _ = select(&root, expression);
    }
});
