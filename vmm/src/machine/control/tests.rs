//! The socket with a machine that is played by the test.

use super::super::{
    Client, ClientError, Notice, RunState, StopReason, notices::Notices, run::Message,
};
use super::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use std::{
    io::{BufRead as _, BufReader, IoSlice, Read as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd},
    sync::mpsc,
};

const STATUS: Status = Status {
    reason: None,
    lost_links: Vec::new(),
    disks: std::collections::BTreeMap::new(),
    state: RunState::Running,
    vcpus: 1,
    memory: 4 << 20,
    resets: 0,
    ran_milliseconds: 5,
};

/// A socket whose machine writes `saved` to what it is to be saved to, or fails to.
fn served(folder: &Path, works: bool) -> PathBuf {
    served_with(folder, works, Notices::new())
}

fn served_with(folder: &Path, works: bool, notices: Notices) -> PathBuf {
    let (sender, messages) = mpsc::channel();
    std::thread::spawn(move || {
        for message in messages {
            let Message::Command(command, reply) = message else {
                continue;
            };
            match command {
                Command::Save { mut file, .. } => {
                    file.write_all(b"saved").unwrap();
                    reply(if works {
                        Ok(STATUS)
                    } else {
                        Err(CommandError::Failed("the disk is full".to_owned()))
                    });
                }
                Command::Quit => drop(reply),
                _ => reply(Ok(STATUS)),
            }
        }
    });
    let path = folder.join("control");
    serve(bind(&path).unwrap(), Remote { sender, notices }).unwrap();
    path
}

fn send(stream: &std::os::unix::net::UnixStream, text: &str, descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(80))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    let bytes = [IoSlice::new(text.as_bytes())];
    let sent = sendmsg(stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, text.len());
}

#[test]
fn a_client_saves_and_a_failure_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    std::fs::write(&file, "old").unwrap();
    let failing = served(folder.path(), false);
    let error = Client::connect(&failing)
        .unwrap()
        .save(&file, false)
        .unwrap_err();
    assert!(matches!(&error, ClientError::Refused { code: FAILED, .. }));
    assert_eq!(error.to_string(), "the disk is full");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");

    let other = tempfile::tempdir().unwrap();
    let working = served(other.path(), true);
    let mut client = Client::connect(&working).unwrap();
    assert_eq!(client.save(&file, false).unwrap(), STATUS);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "saved");
    assert!(!folder.path().join("state.new").exists());
    assert_eq!(client.call("pause").unwrap(), STATUS);
    // The place beside is taken by a folder.
    std::fs::create_dir(folder.path().join("state.new")).unwrap();
    let error = client.save(&file, false).unwrap_err();
    assert!(matches!(error, ClientError::File { .. }), "{error}");
    // A machine that ends instead of answering says so.
    let error = client.call("quit").unwrap_err();
    assert_eq!(error.to_string(), "the machine has ended");
}

#[test]
fn descriptors_go_to_the_request_that_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = served(folder.path(), true);
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let names = ["a", "b"];
    let [first, second] = names.map(|name| File::create_new(folder.path().join(name)).unwrap());
    // Two requests and their descriptors in one go, the first in need of none.
    send(
        &stream,
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n\
         {\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"save\",\"descriptors\":1}\n\
         {\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"pause\",\"descriptors\":1}\n\
         {\"jsonrpc\":\"2.0\",\"id\":4,\"method\":\"save\",\"descriptors\":1}\n",
        &[first.as_fd(), second.as_fd()],
    );
    let mut answers = BufReader::new(stream).lines();
    let mut next = || -> Value { serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["result"]["state"], "running");
    assert_eq!(next()["result"]["state"], "running");
    assert_eq!(next()["error"]["code"], INVALID_PARAMS);
    assert_eq!(next()["error"]["code"], INVALID_REQUEST);
    let [a, b] = names.map(|name| std::fs::read_to_string(folder.path().join(name)).unwrap());
    assert_eq!((a.as_str(), b.as_str()), ("saved", ""));
}

#[test]
fn descriptors_of_nonsense_and_of_too_many_are_closed() {
    let folder = tempfile::tempdir().unwrap();
    let path = served(folder.path(), true);
    let stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    send(&stream, "nonsense\n", &[writer.as_fd()]);
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("-32700"));
    drop(writer);
    // The monitor's copy was the last one.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    let (_reader, writer) = std::io::pipe().unwrap();
    send(&stream, " ", &vec![writer.as_fd(); MOST_DESCRIPTORS + 1]);
    assert!(
        lines.next().is_none_or(|line| line.is_err()),
        "the connection is closed"
    );
}

#[test]
fn who_watches_is_told_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let notices = Notices::new();
    let path = served_with(folder.path(), true, notices.clone());
    let lost = |name: &str| Notice::LinkLost {
        nic: name.to_owned(),
    };
    notices.tell(lost("early"));
    let mut other = Client::connect(&path).unwrap();
    let watching = Client::connect(&path).unwrap();
    let (status, mut told) = watching.watch().unwrap();
    assert_eq!(status, STATUS);
    let stopped = Notice::Stopped {
        reason: StopReason::IoError,
    };
    for notice in [lost("net0"), stopped, lost("net1")] {
        notices.tell(notice.clone());
        assert_eq!(told.next().unwrap().unwrap(), notice);
        assert_eq!(other.call("status").unwrap(), STATUS);
    }
    // A connection that watches is answered too, and notices have no number.
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let watch = b"{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"watch\"}\n";
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    for _ in 0..2 {
        stream.write_all(watch).unwrap();
        assert_eq!(next()["id"], 7);
        notices.tell(lost("net0"));
        let expected = json!({"jsonrpc": "2.0", "method": "link-lost", "params": {"nic": "net0"}});
        assert_eq!(next(), expected);
    }
}

#[test]
fn a_line_without_end_is_answered_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = served(folder.path(), true);
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let writing = stream.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let mut writing = writing;
        // Ends early when the other side closes.
        let _ = writing.write_all(&vec![b'x'; 1 << 20]);
    });
    let mut text = String::new();
    // The rest of the line is still on its way when the connection is closed.
    let _ = stream.read_to_string(&mut text);
    writer.join().unwrap();
    assert_eq!(text.matches("-32700").count(), 1, "{text}");
}
