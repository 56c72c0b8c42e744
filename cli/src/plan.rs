//! What a command would do, for `--dry-run` and for the question before it is done.

use schemars::JsonSchema;
use serde::Serialize;

use crate::consent::Level;
use crate::out::{Layout, View};

/// A command's intention.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Plan {
    /// The command, such as `vol-delete`.
    pub command: String,
    /// What it would change, in order.
    pub changes: Vec<Change>,
    /// The agreement it needs: `none`, `ask` or `type-name`.
    #[schemars(with = "String")]
    pub asks: Level,
    /// The name that `--confirm` wants.
    pub name: String,
    /// The deed in words, to be read after "About to".
    #[serde(skip)]
    pub deed: String,
}

/// One thing that would change.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Change {
    /// What is done, such as `create` or `remove`.
    pub action: String,
    /// To what: a file, a definition.
    pub target: String,
    /// More about it, such as a size.
    pub detail: Option<String>,
}

impl Plan {
    /// A plan for `command` on `name` that needs no agreement.
    pub fn new(command: &str, name: impl Into<String>) -> Self {
        let name = name.into();
        Self {
            command: command.to_owned(),
            changes: Vec::new(),
            asks: Level::None,
            deed: format!("run {command} on {name}"),
            name,
        }
    }

    /// Asks for agreement to `deed`, such as "delete volume a.img".
    #[must_use]
    pub fn asks(mut self, level: Level, deed: impl Into<String>) -> Self {
        self.asks = level;
        self.deed = deed.into();
        self
    }

    /// Adds a change.
    #[must_use]
    pub fn change(mut self, action: &str, target: impl Into<String>) -> Self {
        self.changes.push(Change {
            action: action.to_owned(),
            target: target.into(),
            detail: None,
        });
        self
    }

    /// Adds a change with more about it.
    #[must_use]
    pub fn change_with(
        mut self,
        action: &str,
        target: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        self.changes.push(Change {
            action: action.to_owned(),
            target: target.into(),
            detail: Some(detail.into()),
        });
        self
    }
}

impl View for Plan {
    fn layout(&self) -> Layout {
        let mut text = format!("{} would:\n", self.command);
        for change in &self.changes {
            text.push_str(&format!("  {} {}", change.action, change.target));
            if let Some(detail) = &change.detail {
                text.push_str(&format!(" ({detail})"));
            }
            text.push('\n');
        }
        match self.asks {
            Level::None => {}
            Level::Ask => text.push_str("It asks first; --yes agrees.\n"),
            Level::TypeName => {
                let name = crate::out::quoted(&self.name);
                text.push_str(&format!(
                    "It wants the name typed; --confirm {name} agrees.\n"
                ));
            }
        }
        text.push_str("Nothing was changed.\n");
        Layout::Text(text)
    }

    fn names(&self) -> Vec<String> {
        vec![self.name.clone()]
    }
}
