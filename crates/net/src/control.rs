//! The control connection: JSON-RPC 2.0, one message per line, over a Unix stream socket that
//! the parent has made.
//!
//! Notifications: `ready`; `lease` with `mac`, `address`, `host_name`, `boot_file`; `transfer`
//! with `protocol`, `name`, `bytes`, `outcome`. Requests: `statistics`.
//!
//! A reader that is slow loses events, not the network its time; how many is told with the next
//! one that gets through, as `lost`.

use crate::{
    config::format_mac,
    network::{Event, Statistics},
};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// The longest request in bytes.
const LONGEST: usize = 4096;
/// Most bytes that wait for a slow reader.
const MOST_WAITING: usize = 64 * 1024;

/// The connection.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    input: Vec<u8>,
    output: Vec<u8>,
    lost: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    jsonrpc: String,
    #[serde(default)]
    id: Value,
    method: String,
    #[serde(default)]
    params: Option<Value>,
}

impl Control {
    /// Takes the socket over.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: Vec::new(),
            output: Vec::new(),
            lost: 0,
        }
    }

    /// The descriptor, for polling.
    #[must_use]
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Whether something waits to be sent.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.output.is_empty()
    }

    /// Says that the network is there.
    pub fn ready(&mut self) {
        self.notify("ready", json!({}));
    }

    /// Tells an event.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Lease(lease) => self.notify(
                "lease",
                json!({
                    "mac": format_mac(&lease.mac),
                    "address": lease.address,
                    "host_name": lease.host_name,
                    "boot_file": lease.boot_file,
                }),
            ),
            Event::Transfer(transfer) => self.notify(
                "transfer",
                json!({
                    "protocol": "tftp",
                    "name": transfer.name,
                    "bytes": transfer.bytes,
                    "outcome": transfer.outcome,
                }),
            ),
        }
    }

    fn notify(&mut self, method: &str, mut params: Value) {
        if self.lost > 0 {
            params["lost"] = self.lost.into();
        }
        let line = json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string();
        if self.write(&line) {
            self.lost = 0;
        } else {
            self.lost += 1;
        }
    }

    /// Queues a line and sends what the reader takes; tells whether there was room for it.
    fn write(&mut self, line: &str) -> bool {
        if self.output.len() + line.len() >= MOST_WAITING {
            return false;
        }
        self.output.extend_from_slice(line.as_bytes());
        self.output.push(b'\n');
        self.flush();
        true
    }

    /// Sends what waits, as far as the reader takes it.
    pub fn flush(&mut self) {
        while !self.output.is_empty() {
            match send(
                &self.socket,
                &self.output,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The reader is gone; reading tells that.
                Err(_) => self.output.clear(),
            }
        }
    }

    /// Reads requests and answers them; `false` when the connection is over.
    pub fn serve(&mut self, statistics: impl Fn() -> Statistics) -> bool {
        let mut buffer = [0; LONGEST];
        match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((0, _)) => return false,
            Ok((length, _)) => self.input.extend_from_slice(&buffer[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        while let Some(end) = self.input.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let answer = answer(&line, &statistics);
            if !self.write(&answer.to_string()) {
                return false; // Somebody asks without reading the answers.
            }
        }
        self.input.len() < LONGEST
    }
}

fn answer(line: &[u8], statistics: &impl Fn() -> Statistics) -> Value {
    let failure = |id: Value, code: i32, text: String| json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text}});
    let request: Request = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(error) => {
            let code = if error.is_data() { -32600 } else { -32700 };
            return failure(Value::Null, code, error.to_string());
        }
    };
    if request.jsonrpc != "2.0" {
        return failure(request.id, -32600, "jsonrpc must be \"2.0\"".into());
    }
    if request.method != "statistics" {
        let text = format!(
            "there is no method '{}'; there is: statistics",
            request.method
        );
        return failure(request.id, -32601, text);
    }
    if request.params.is_some() {
        return failure(request.id, -32602, "statistics takes no parameters".into());
    }
    json!({"jsonrpc": "2.0", "id": request.id, "result": statistics()})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tftp::{Outcome, Transfer};
    use std::{
        io::{BufRead as _, BufReader, Write as _},
        os::unix::net::UnixStream,
    };

    fn event() -> Event {
        Event::Transfer(Transfer {
            name: "f".into(),
            bytes: 7,
            outcome: Outcome::Complete,
        })
    }

    #[test]
    fn questions_are_answered_and_events_told() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours.into());
        control.event(&event());
        let requests = [
            r#"{"jsonrpc":"2.0","id":1,"method":"statistics"}"#,
            r#"{"jsonrpc":"2.0","id":2,"method":"reboot"}"#,
            r#"{"jsonrpc":"1.0","id":3,"method":"statistics"}"#,
            r#"{"jsonrpc":"2.0","id":4,"method":"statistics","params":{}}"#,
            r#"{"color":1}"#,
            "nonsense",
        ];
        (&theirs)
            .write_all((requests.join("\n") + "\n").as_bytes())
            .unwrap();
        assert!(control.serve(Statistics::default));
        let mut lines = BufReader::new(&theirs).lines();
        let mut next = || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(
            next(),
            json!({"jsonrpc": "2.0", "method": "transfer", "params":
                {"protocol": "tftp", "name": "f", "bytes": 7, "outcome": "complete"}})
        );
        assert_eq!(next()["result"]["from_guest"]["frames"], 0);
        for code in [-32601, -32600, -32602, -32600, -32700] {
            assert_eq!(next()["error"]["code"], code);
        }
    }

    #[test]
    fn a_slow_reader_loses_events_and_is_told_how_many() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours.into());
        for _ in 0..20_000 {
            control.event(&event());
        }
        let lost = control.lost;
        assert!(lost > 0 && control.is_waiting());
        let mut lines = BufReader::new(&theirs).lines();
        for _ in 0..20_000 - lost {
            control.flush();
            assert!(!lines.next().unwrap().unwrap().contains("lost"));
        }
        control.event(&event());
        assert!(
            lines
                .next()
                .unwrap()
                .unwrap()
                .contains(&format!("\"lost\":{lost}"))
        );
    }

    #[test]
    fn endless_requests_and_the_end_close_the_connection() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Control::new(ours.into());
        (&theirs).write_all(&[b'x'; LONGEST]).unwrap();
        assert!(!control.serve(Statistics::default));
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(!Control::new(ours.into()).serve(Statistics::default));
    }
}
