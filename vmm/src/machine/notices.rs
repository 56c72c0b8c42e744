//! What happens to a machine without anybody's request, for whoever watches it.

use super::StopReason;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// How many notices a watcher can be behind before it loses the oldest.
const KEPT: usize = 64;

/// Something that happened. On the control socket it is a request without a number, as JSON-RPC
/// has it, which nobody answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", content = "params", rename_all = "kebab-case")]
pub enum Notice {
    /// The host's side of a network card has closed; the guest sees its link go down.
    LinkLost {
        /// The card's name.
        nic: String,
    },
    /// The guest stands still, and nobody has asked for it.
    Stopped {
        /// Why.
        reason: StopReason,
    },
    /// The watcher was too slow.
    Lost {
        /// How many notices it has missed.
        notices: u64,
    },
}

/// Where notices come from; those that nobody watches for are lost.
#[derive(Debug, Clone)]
pub(super) struct Notices(broadcast::Sender<Notice>);

impl Notices {
    pub(super) fn new() -> Self {
        Self(broadcast::channel(KEPT).0)
    }

    /// Tells all watchers.
    pub(super) fn tell(&self, notice: Notice) {
        // Without a watcher there is nobody to tell.
        let _ = self.0.send(notice);
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }
}

/// One watcher's notices.
pub(super) struct Watch(broadcast::Receiver<Notice>);

impl Watch {
    /// The next notice, as soon as there is one; none when the machine has gone.
    pub(super) async fn next(&mut self) -> Option<Notice> {
        match self.0.recv().await {
            Ok(notice) => Some(notice),
            Err(broadcast::error::RecvError::Lagged(notices)) => Some(Notice::Lost { notices }),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
