//! The life of pools on a node.

use std::fs;
use std::path::Path;

use cenote_engine::{BuildMode, ErrorKind, Node, NodeOptions, PoolState};

fn node(dir: &Path) -> Node {
    Node::open(&NodeOptions::in_dir(dir)).expect("a node in a temporary directory opens")
}

fn dir_pool(name: &str, target: &Path) -> String {
    format!(
        "<pool type='dir'><name>{name}</name><target><path>{}</path></target></pool>",
        target.display()
    )
}

#[test]
fn a_fresh_node_has_an_active_default_pool() {
    let dir = tempfile::tempdir().unwrap();
    let pools = node(dir.path()).pools().unwrap();
    assert_eq!(pools.len(), 1);
    assert_eq!(
        (pools[0].name.as_str(), pools[0].state),
        ("default", PoolState::Running)
    );
    assert!(pools[0].autostart && pools[0].persistent);
    assert_eq!(pools[0].target, dir.path().join("images"));
    assert!(pools[0].capacity.unwrap() > 0);
}

#[test]
fn the_default_pool_stays_away_once_it_was_undefined() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    node.pool_stop("default").unwrap();
    node.pool_undefine("default").unwrap();
    drop(node);
    assert!(self::node(dir.path()).pools().unwrap().is_empty());
}

#[test]
fn life_cycle_of_a_directory_pool() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir.path().join("state"));
    let target = dir.path().join("disks/inner");
    let info = node.pool_define(&dir_pool("disks", &target)).unwrap();
    assert_eq!(info.state, PoolState::Inactive);
    // Not built yet: starting says what is missing and how to make it.
    let error = node.pool_start("disks", None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState);
    assert!(
        error.hint().unwrap().contains("pool-build disks"),
        "{error}"
    );
    node.pool_build("disks", BuildMode::Plain).unwrap();
    node.pool_start("disks", None).unwrap();
    let error = node.pool_start("disks", None).unwrap_err();
    assert_eq!(error.to_string(), "storage pool 'disks' is active");
    for refused in [
        node.pool_undefine("disks"),
        node.pool_delete("disks"),
        node.pool_build("disks", BuildMode::Plain),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidState);
    }
    node.pool_autostart("disks", true).unwrap();
    let by_uuid = node.pool(&info.uuid.to_uppercase()).unwrap();
    assert!(by_uuid.autostart);
    assert_eq!(by_uuid.name, "disks");
    node.pool_stop("disks").unwrap();
    fs::write(target.join("left"), "x").unwrap();
    let error = node.pool_delete("disks").unwrap_err();
    assert!(error.to_string().contains("not empty"), "{error}");
    assert!(target.join("left").exists());
    fs::remove_file(target.join("left")).unwrap();
    node.pool_delete("disks").unwrap();
    assert!(!target.exists());
    node.pool_undefine("disks").unwrap();
    assert_eq!(node.pool("disks").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_pool_whose_directory_vanished_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir.path().join("state"));
    let target = dir.path().join("disks");
    node.pool_define(&dir_pool("disks", &target)).unwrap();
    node.pool_start("disks", Some(BuildMode::Plain)).unwrap();
    fs::remove_dir(&target).unwrap();
    let info = node.pool("disks").unwrap();
    assert_eq!(info.state, PoolState::Inaccessible);
    assert!(info.problem.unwrap().contains(target.to_str().unwrap()));
    let error = node.volumes("disks").unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn names_uuids_and_directories_belong_to_one_pool() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir.path().join("state"));
    let target = dir.path().join("a");
    let info = node.pool_define(&dir_pool("a", &target)).unwrap();
    let same_name = node
        .pool_define(&dir_pool("a", &dir.path().join("b")))
        .unwrap_err();
    assert_eq!(same_name.kind(), ErrorKind::Exists, "{same_name}");
    assert!(same_name.to_string().contains(&info.uuid));
    let same_place = node.pool_define(&dir_pool("b", &target)).unwrap_err();
    assert!(same_place.to_string().contains("pool 'a'"), "{same_place}");
    // The same name and UUID is a new definition.
    let xml = node.pool_xml("a", true).unwrap();
    node.pool_define(&xml.replace("/a</path>", "/c</path>"))
        .unwrap();
    assert_eq!(node.pool("a").unwrap().target, dir.path().join("c"));
}

#[test]
fn transient_pools_leave_with_their_stop() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(&dir.path().join("state"));
    let target = dir.path().join("t");
    let error = node.pool_create(&dir_pool("t", &target), None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidState, "{error}");
    assert!(node.pool("t").is_err(), "a failed create leaves nothing");
    let info = node
        .pool_create(&dir_pool("t", &target), Some(BuildMode::Plain))
        .unwrap();
    assert!(!info.persistent);
    assert!(
        node.pool_autostart("t", true)
            .unwrap_err()
            .to_string()
            .contains("transient")
    );
    node.pool_stop("t").unwrap();
    assert_eq!(node.pool("t").unwrap_err().kind(), ErrorKind::NotFound);
    assert!(target.exists());
}

#[test]
fn other_types_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    for kind in ["iscsi", "rbd", "zfs", "disk", "gluster"] {
        let xml = format!(
            "<pool type='{kind}'><name>x</name><target><path>/dev/x</path></target></pool>"
        );
        let error = node.pool_define(&xml).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains(kind), "{error}");
    }
}

#[test]
fn events_tell_what_happened_and_wake_watchers() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path());
    let mut watcher = node.watch_events(None).unwrap();
    let other = self::node(dir.path());
    std::thread::scope(|scope| {
        scope.spawn(|| other.pool_stop("default").unwrap());
        let mut kinds = Vec::new();
        while !kinds.contains(&"pool-stopped".to_owned()) {
            let events = watcher
                .next(Some(std::time::Duration::from_secs(60)))
                .unwrap();
            assert!(!events.is_empty(), "no event came; so far {kinds:?}");
            kinds.extend(events.into_iter().map(|event| event.kind));
        }
    });
    let all = node.events(0).unwrap();
    assert!(
        all.windows(2)
            .all(|pair| pair[0].sequence < pair[1].sequence)
    );
}

#[test]
fn a_read_only_state_directory_is_named() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting a read-only file system needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        let status = std::process::Command::new("mount")
            .args(arguments)
            .arg(dir.path())
            .status()
            .expect("mount of package mount");
        assert!(status.success());
    };
    mount(&["-t", "tmpfs", "-o", "size=16m", "none"]);
    drop(node(dir.path()));
    mount(&["-o", "remount,ro"]);
    let error = Node::open(&NodeOptions::in_dir(dir.path())).unwrap_err();
    let unmounted = std::process::Command::new("umount")
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(unmounted.success());
    assert_eq!(error.kind(), ErrorKind::Host, "{error}");
    assert!(
        error.to_string().contains(dir.path().to_str().unwrap()),
        "{error}"
    );
}
