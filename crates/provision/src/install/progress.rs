//! What installers print, read as progress.
//!
//! One reader takes the serial line, Anaconda's log port, debian-installer's syslog, Subiquity's
//! lines and cloud-init's, since each has words that no other has. It never waits for an end of
//! line to see a question.

use crate::answer::Hooks;

/// Longest line that is looked at, in bytes; the rest of it is passed over.
const MAX_LINE: usize = 4096;
/// Longest text of a step, in characters.
const MAX_TEXT: usize = 200;

/// Where an install is. Their order is that of an install.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// Kernel and initrd.
    Boot,
    /// The installer makes itself ready: network, mirror, its own parts.
    Prepare,
    /// Partitions and file systems.
    Storage,
    /// Packages.
    Packages,
    /// The boot loader.
    BootLoader,
    /// Users, scripts, settings.
    Configure,
    /// The end.
    Done,
}

/// Something that an installer told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A kernel started: once more is a loop, after a report or without one.
    KernelStarted,
    /// It is at a stage; the line that says so.
    At {
        /// The stage.
        stage: Stage,
        /// The line.
        text: String,
    },
    /// So many of so many packages, or of a hundred.
    Count {
        /// Done.
        done: u32,
        /// Of.
        of: u32,
    },
    /// It waits for an answer.
    Asked(String),
    /// It cannot go on, and says so.
    Trouble(String),
    /// The answer file's report.
    Report {
        /// Success or failure.
        success: bool,
    },
}

/// Words, and the stage that they are of.
const STAGES: &[(&str, Stage)] = &[
    // Anaconda.
    ("Starting installer, one moment", Stage::Prepare),
    ("Starting automated install", Stage::Prepare),
    ("Setting up the installation environment", Stage::Prepare),
    ("Configuring storage", Stage::Storage),
    ("Creating disklabel on", Stage::Storage),
    ("Starting package installation process", Stage::Packages),
    ("Downloading packages", Stage::Packages),
    (
        "Preparing transaction from installation source",
        Stage::Packages,
    ),
    ("Installing boot loader", Stage::BootLoader),
    ("Performing post-installation setup tasks", Stage::Configure),
    ("Running post-installation scripts", Stage::Configure),
    ("Installation complete", Stage::Done),
    // debian-installer: the main menu's log, by the package that a step is in.
    ("Menu item 'ethdetect' selected", Stage::Prepare),
    ("Menu item 'netcfg' selected", Stage::Prepare),
    ("Menu item 'choose-mirror' selected", Stage::Prepare),
    ("Menu item 'download-installer' selected", Stage::Prepare),
    ("Menu item 'disk-detect' selected", Stage::Storage),
    ("Menu item 'partman-base' selected", Stage::Storage),
    ("Menu item 'bootstrap-base' selected", Stage::Packages),
    ("Menu item 'apt-setup-udeb' selected", Stage::Packages),
    ("Menu item 'pkgsel' selected", Stage::Packages),
    ("Menu item 'grub-installer' selected", Stage::BootLoader),
    ("Menu item 'finish-install' selected", Stage::Configure),
    // Subiquity and curtin.
    ("start: subiquity/Meta/", Stage::Prepare),
    ("start: subiquity/Early/", Stage::Prepare),
    ("curtin install partitioning step", Stage::Storage),
    ("cmd-block-meta", Stage::Storage),
    ("curtin install extract step", Stage::Packages),
    ("cmd-extract", Stage::Packages),
    ("installing kernel", Stage::Packages),
    ("configuring target system bootloader", Stage::BootLoader),
    ("installing grub to target devices", Stage::BootLoader),
    ("curtin install curthooks step", Stage::Configure),
    ("start: subiquity/Late/", Stage::Configure),
    ("start: subiquity/Shutdown", Stage::Done),
    // cloud-init.
    ("running 'init-local'", Stage::Prepare),
    ("running 'init'", Stage::Prepare),
    ("running 'modules:config'", Stage::Configure),
    ("running 'modules:final'", Stage::Configure),
];

/// Words of a question, which may stand on a line without an end.
const QUESTIONS: &[&str] = &[
    "Continue with autoinstall? (yes|no)",
    "Please make a selection from the above",
    "Please make your choice from",
    "Please respond 'yes' or 'no'",
    "Prompt: '?' for help",
    "Press Enter for maintenance",
    "Give root password for maintenance",
    "or press Control-D to continue",
    "Enter passphrase for",
    "(initramfs) ",
    "dracut:/# ",
];

/// Words of an installer that gives up.
const TROUBLES: &[&str] = &[
    "Kernel panic - not syncing",
    "An unknown error has occurred",
    "The installation was stopped due to",
    "The following error occurred while installing",
    "There was an error running the kickstart script",
    "Warning: dracut-initqueue timeout",
    "anaconda: kickstart error",
    "Error processing kickstart",
    "An installation step failed",
    "Failed to retrieve the preconfiguration file",
    "Failed to process the preconfiguration file",
    "Failed to fetch kickstart from",
    "Malformed autoinstall in",
    "curtin command install failed",
    "No bootable device",
    "No root device specified",
];

/// A reader of what an installer prints.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    hooks: Option<Hooks>,
    line: Vec<u8>,
    escape: Escape,
    /// The line that is open has been told of.
    told: bool,
    stage: Option<Stage>,
}

/// Where in a terminal's control sequence the reader is (ECMA-48, 5.4).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Begun,
    Sequence,
}

impl Progress {
    /// A reader that knows the reports of an answer file.
    pub fn new(hooks: Option<Hooks>) -> Self {
        Self {
            hooks,
            ..Self::default()
        }
    }

    /// The furthest stage that was told.
    pub fn stage(&self) -> Option<Stage> {
        self.stage
    }

    /// Takes what was printed; gives what it means, in order.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Step> {
        let mut steps = Vec::new();
        for byte in bytes {
            self.take(*byte, &mut steps);
        }
        // A question waits on a line without an end.
        if !self.told && !self.line.is_empty() {
            let text = text_of(&self.line);
            if let Some(step) = asked(&text) {
                self.told = true;
                steps.push(step);
            }
        }
        steps
    }

    fn take(&mut self, byte: u8, steps: &mut Vec<Step>) {
        match (self.escape, byte) {
            (Escape::None, 0x1b) => self.escape = Escape::Begun,
            (Escape::None, b'\n' | b'\r') => self.end_line(steps),
            (Escape::None, 0x20..=0xff | b'\t') if self.line.len() < MAX_LINE => {
                self.line.push(byte);
            }
            (Escape::None, _) => {}
            (Escape::Begun, b'[') => self.escape = Escape::Sequence,
            (Escape::Begun, _) => self.escape = Escape::None,
            (Escape::Sequence, 0x40..=0x7e) => self.escape = Escape::None,
            // A sequence that a line ends in was none.
            (Escape::Sequence, b'\n') => {
                self.escape = Escape::None;
                self.end_line(steps);
            }
            (Escape::Sequence, _) => {}
        }
    }

    fn end_line(&mut self, steps: &mut Vec<Step>) {
        let line = std::mem::take(&mut self.line);
        let told = std::mem::take(&mut self.told);
        let text = text_of(&line);
        if text.is_empty() {
            return;
        }
        if let Some(hooks) = &self.hooks {
            // A console may put its own words before it.
            let success = text.ends_with(&hooks.success());
            if success || text.ends_with(&hooks.failure()) {
                steps.push(Step::Report { success });
                return;
            }
        }
        if told {
            return;
        }
        steps.extend(self.read(&text));
    }

    fn read(&mut self, text: &str) -> Option<Step> {
        if text.contains("] Linux version ") || text.starts_with("Linux version ") {
            self.stage = self.stage.max(Some(Stage::Boot));
            return Some(Step::KernelStarted);
        }
        if let Some(words) = TROUBLES.iter().find(|words| text.contains(**words)) {
            let from = text.find(words).unwrap_or(0);
            return Some(Step::Trouble(cut(&text[from..])));
        }
        if let Some(step) = asked(text) {
            return Some(step);
        }
        if let Some((done, of)) = count(text) {
            self.stage = self.stage.max(Some(Stage::Packages));
            return Some(Step::Count { done, of });
        }
        if text.contains("Cloud-init v. ") && text.contains(" finished at ") {
            self.stage = Some(Stage::Done);
            return Some(Step::At {
                stage: Stage::Done,
                text: cut(text),
            });
        }
        let (words, stage) = STAGES.iter().find(|(words, _)| text.contains(words))?;
        self.stage = self.stage.max(Some(*stage));
        // Without the time and the name of who wrote it to a log.
        let from = text.find(words).unwrap_or(0);
        Some(Step::At {
            stage: *stage,
            text: cut(text.get(from..).unwrap_or(text)),
        })
    }

    /// Takes a report of Subiquity's webhook; `None` for what is none, or tells nothing new.
    pub fn report(&mut self, json: &str) -> Option<Step> {
        let report: serde_json::Value = serde_json::from_str(json).ok()?;
        let text = |key: &str| report.get(key).and_then(serde_json::Value::as_str);
        let (kind, name) = (text("event_type")?, text("name")?);
        let description = text("description").unwrap_or_default();
        if kind == "finish" && text("result") == Some("FAIL") {
            return Some(Step::Trouble(cut(&format!("{name}: {description}"))));
        }
        self.read(&cut(&format!("{kind}: {name}: {description}")))
    }
}

fn text_of(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim().to_owned()
}

fn cut(text: &str) -> String {
    let clean = text.chars().filter(|c| !c.is_control());
    clean.take(MAX_TEXT).collect()
}

fn asked(text: &str) -> Option<Step> {
    let words = QUESTIONS
        .iter()
        .find(|words| text.contains(words.trim_end()))?;
    // A shell's prompt stands at the start of its line.
    if words.ends_with(' ') && !text.starts_with(words.trim_end()) {
        return None;
    }
    Some(Step::Asked(cut(text)))
}

/// `Installing glibc.x86_64 (12/345)`, as Anaconda counts packages, or debian-installer's
/// `Installing the base system ... 40%`.
fn count(text: &str) -> Option<(u32, u32)> {
    let tail = text.rsplit(' ').next()?;
    if let Some((done, of)) = tail
        .strip_prefix('(')
        .and_then(|tail| tail.strip_suffix(')'))
        .and_then(|pair| pair.split_once('/'))
        && ["Installing ", "Verifying ", "Configuring "]
            .iter()
            .any(|word| text.contains(word))
    {
        let (done, of) = (done.parse().ok()?, of.parse().ok()?);
        return (of > 0 && done <= of).then_some((done, of));
    }
    let percent: u32 = tail
        .strip_suffix('%')?
        .trim_start_matches("...")
        .parse()
        .ok()?;
    let counted = ["Installing ", "Retrieving ", "Select and install"];
    (percent <= 100 && counted.iter().any(|word| text.starts_with(word))).then_some((percent, 100))
}
