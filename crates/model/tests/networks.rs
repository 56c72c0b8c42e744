//! Networks and snapshots: FEATURES 133 and 134, libvirt's test driver, refusals.
#![allow(clippy::unwrap_used)] // Helpers of tests fail like tests.

mod common;

use cenote_model::Document;
use cenote_model::domain::{DiskKind, SnapshotMode};
use cenote_model::network::{ForwardMode, Network};
use cenote_model::snapshot::{Snapshot, SnapshotDomain, SnapshotMemoryMode, SnapshotState};
use common::{error, read, stable, validate, virsh};

#[track_caller]
fn contains(text: &str, expected: &str) {
    assert!(text.contains(expected), "'{expected}' is not in: {text}");
}

fn network(inner: &str) -> String {
    format!("<network><name>n</name>\n{inner}</network>")
}

#[test]
fn libvirt_defines_our_networks_and_prints_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["pxe", "isolated", "bridge"] {
        let path = format!(
            "{}/../../fixtures/xml/network/{name}.xml",
            env!("CARGO_MANIFEST_DIR")
        );
        let document = read::<Network>(&std::fs::read_to_string(path).unwrap()).document;
        let file = folder.path().join("n.xml");
        std::fs::write(&file, document.to_xml()).unwrap();
        let network = document.name.as_str();
        let output = virsh(&format!(
            "net-define {}\nnet-dumpxml {network}\n",
            file.display()
        ));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.trim().is_empty(), "{errors}");
        let stdout = String::from_utf8_lossy(&output.stdout);
        let start = stdout.find("<network").unwrap();
        let end = stdout.find("</network>").unwrap() + "</network>".len();
        let mut theirs = read::<Network>(&stdout[start..end]).document;
        // libvirt gives what only a host can know.
        theirs.uuid = document.uuid;
        theirs.mac = document.mac.clone();
        if document.bridge.is_none() {
            theirs.bridge = None;
        }
        assert_eq!(theirs.to_xml(), document.to_xml());
    }
}

#[test]
fn row_134_networks() {
    let nat = read::<Network>(&network(
        "<forward/><bridge name='virbr0'/><ip address='10.0.0.1'/>",
    ));
    assert_eq!(nat.document.forward_mode(), ForwardMode::Nat);
    assert_eq!(nat.document.ips[0].prefix_length(), Some(8));
    let none = read::<Network>(&network("<forward mode='none'/>"));
    assert_eq!(none.document.forward_mode(), ForwardMode::None);
    contains(&none.notes[0].to_string(), "leaving <forward> out");
    validate("network", &stable(&none.document));
    let ip = |inner: &str| {
        network(&format!(
            "<ip address='192.168.7.1' netmask='255.255.255.0'>{inner}</ip>"
        ))
    };
    for (text, expected) in [
        (network("<forward mode='vepa'/>"), "mode 'vepa'"),
        (
            network("<forward mode='route'><nat/></forward>"),
            "belongs to mode 'nat'",
        ),
        (network("<forward mode='bridge'/>"), "<bridge name='...'/>"),
        (network("<bridge name='a/b'/>"), "without slashes"),
        (network("<ip address='300.1.1.1'/>"), "an IP address"),
        (
            network("<ip address='10.0.0.1' netmask='255.0.255.0'/>"),
            "a netmask of IPv4",
        ),
        (
            network("<ip address='10.0.0.1' prefix='33'/>"),
            "no longer than the address",
        ),
        (
            network("<ip address='10.0.0.1' prefix='8' netmask='255.0.0.0'/>"),
            "exclude each other",
        ),
        (
            ip("<dhcp><range start='192.168.8.2' end='192.168.8.9'/></dhcp>"),
            "in the network of 192.168.7.1",
        ),
        (
            ip("<dhcp><range start='192.168.7.9' end='192.168.7.2'/></dhcp>"),
            "below the first",
        ),
        (
            ip("<dhcp><host ip='192.168.7.2'/></dhcp>"),
            "'mac', 'id' and 'name'",
        ),
        (
            ip("<dhcp><host name='a' ip='192.168.7.2'/><host name='b' ip='192.168.7.2'/></dhcp>"),
            "for one guest",
        ),
        (ip("<tftp root='tftp'/>"), "an absolute path"),
        (network("<vlan><tag id='1'/></vlan>"), "/network/vlan"),
        (
            network("<virtualport type='openvswitch'/>"),
            "/network/virtualport",
        ),
        (network("<portgroup name='a'/>"), "/network/portgroup"),
        (
            network("<route address='10.0.0.0' gateway='10.0.0.1'/>"),
            "/network/route",
        ),
        (network("<mac address='01:00:00:00:00:00'/>"), "multicast"),
        ("<network/>".to_owned(), "element <name> is missing"),
    ] {
        contains(&error::<Network>(&text), expected);
    }
}

#[test]
fn row_133_snapshots() {
    let text = "<domainsnapshot><memory file='/m'/><disks><disk name='vda'><source file='/new'/></disk></disks></domainsnapshot>";
    let snapshot = read::<Snapshot>(text).document;
    validate("domainsnapshot", &stable(&snapshot));
    assert_eq!(snapshot.name, None);
    assert_eq!(
        snapshot.memory.as_ref().unwrap().mode,
        Some(SnapshotMemoryMode::External)
    );
    assert_eq!(snapshot.disks()[0].mode, Some(SnapshotMode::External));
    let full = "<domainsnapshot><name>s</name><state>disk-snapshot</state><domain type='kvm'><name>g</name>\
         <memory>1024</memory><os><type>hvm</type></os></domain><inactiveDomain type='kvm'><name>g</name>\
         <memory>2048</memory><os><type>hvm</type></os></inactiveDomain></domainsnapshot>";
    let full = read::<Snapshot>(full).document;
    validate("domainsnapshot", &stable(&full));
    assert_eq!(full.state, Some(SnapshotState::DiskSnapshot));
    assert!(
        matches!(&full.domain, Some(SnapshotDomain::Full(domain)) if domain.memory.kib == 1024)
    );
    assert_eq!(full.inactive_domain.unwrap().memory.kib, 2048);
    let disk = |inner: &str| format!("<domainsnapshot><disks>{inner}</disks></domainsnapshot>");
    for (text, expected) in [
        (disk("<disk name='first'/>"), "a disk's target (vda)"),
        (
            disk("<disk name='vda' snapshot='internal'><source file='/a'/></disk>"),
            "not 'internal'",
        ),
        (
            disk("<disk name='vda' type='network'/>"),
            &format!("type '{}'", DiskKind::Network),
        ),
        (
            disk("<disk name='vda'><driver type='raw'/></disk>"),
            "use qcow2",
        ),
        (disk("<disk name='vda'/><disk name='vda'/>"), "named once"),
        (
            disk("<disk name='vda' snapshot='later'/>"),
            "one of external, internal, no, manual",
        ),
        (
            "<domainsnapshot><memory snapshot='external'/></domainsnapshot>".to_owned(),
            "attribute 'file'",
        ),
        (
            "<domainsnapshot><memory snapshot='no' file='/m'/></domainsnapshot>".to_owned(),
            "external",
        ),
        (
            "<domainsnapshot><name>a/b</name></domainsnapshot>".to_owned(),
            "cannot contain '/'",
        ),
        (
            "<domainsnapshot><domain><name>g</name></domain></domainsnapshot>".to_owned(),
            "attribute 'type'",
        ),
        (
            "<domain/>".to_owned(),
            "expecting root element of 'domainsnapshot'",
        ),
    ] {
        contains(&error::<Snapshot>(&text), expected);
    }
}

#[test]
fn libvirt_takes_our_snapshots() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!(
        "{}/../../fixtures/xml/snapshot/request.xml",
        env!("CARGO_MANIFEST_DIR")
    );
    let snapshot = read::<Snapshot>(&std::fs::read_to_string(path).unwrap()).document;
    let file = folder.path().join("s.xml");
    std::fs::write(&file, snapshot.to_xml()).unwrap();
    let output = virsh(&format!(
        "snapshot-create test {}\nsnapshot-list test\n",
        file.display()
    ));
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    contains(&String::from_utf8_lossy(&output.stdout), "before upgrade");
}
