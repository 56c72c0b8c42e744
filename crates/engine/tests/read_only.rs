//! A read-only node changes nothing on disk, whatever is done to it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cenote_engine::{Node, NodeOptions};

/// Every file and directory below `dir` with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.insert(path.clone(), Vec::new());
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(&path).expect("read"));
        }
    }
    found
}

fn read_only(dir: &Path) -> Node {
    let options = NodeOptions {
        read_only: true,
        ..NodeOptions::in_dir(dir)
    };
    Node::open(&options).expect("opened")
}

#[test]
fn definitions_on_a_copy_leave_the_node_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(&NodeOptions::in_dir(dir.path())).unwrap();
    let before = contents(dir.path());
    let copy = read_only(dir.path());
    assert!(copy.is_read_only());
    let target = dir.path().join("elsewhere");
    let xml = format!(
        "<pool type='dir'><name>x</name><target><path>{}</path></target></pool>",
        target.display()
    );
    copy.pool_define(&xml).unwrap();
    copy.pool_autostart("x", true).unwrap();
    copy.pool_undefine("default").unwrap_err();
    assert_eq!(copy.pools().unwrap().len(), 2);
    drop(copy);
    assert_eq!(contents(dir.path()), before);
    assert_eq!(node.pools().unwrap().len(), 1);
}

#[test]
fn a_copy_sees_what_a_living_process_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::open(&NodeOptions::in_dir(dir.path())).unwrap();
    node.pool_stop("default").unwrap();
    let copy = read_only(dir.path());
    assert_eq!(copy.pools().unwrap(), node.pools().unwrap());
}

#[test]
fn a_node_that_does_not_exist_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let copy = read_only(&state);
    assert_eq!(copy.pool("default").unwrap().name, "default");
    drop(copy);
    assert!(!state.exists());
}
