//! Kickstart files, as Anaconda reads them
//! (<https://pykickstart.readthedocs.io/en/latest/kickstart-docs.html>).
//!
//! Options of commands are for ksvalidator; here is what stops an install, and what ksvalidator
//! does not look at.

use super::{Expect, Findings, Place, is_hashed};

#[rustfmt::skip]
const COMMANDS: &[&str] = &[
    "auth", "authconfig", "authselect", "autopart", "autostep", "bootc", "bootloader", "btrfs",
    "cdrom", "clearpart", "cmdline", "device", "deviceprobe", "dmraid", "driverdisk", "eula",
    "fcoe", "firewall", "firstboot", "graphical", "group", "halt", "harddrive", "hmc",
    "ignoredisk", "install", "interactive", "iscsi", "iscsiname", "key", "keyboard", "lang",
    "liveimg", "logging", "logvol", "mediacheck", "method", "module", "mount", "multipath",
    "network", "nfs", "nvdimm", "ostreecontainer", "ostreesetup", "part", "partition",
    "poweroff", "raid", "rdp", "realm", "reboot", "repo", "reqpart", "rescue", "rhsm", "rootpw",
    "selinux", "services", "shutdown", "skipx", "snapshot", "sshkey", "sshpw", "stratisfs",
    "stratispool", "syspurpose", "text", "timesource", "timezone", "unsupported_hardware",
    "updates", "upgrade", "url", "user", "vnc", "volgroup", "xconfig", "zerombr", "zfcp", "zipl",
];
const SECTIONS: &[&str] = &[
    "%packages",
    "%pre",
    "%pre-install",
    "%post",
    "%onerror",
    "%traceback",
    "%addon",
    "%anaconda",
    "%certificate",
];
/// Commands of installers of the past, which today's refuse.
const GONE: &[(&str, &str)] = &[
    ("interactive", "it makes the installer ask; remove it"),
    (
        "install",
        "it is what happens anyway, and refused from Fedora 34 and RHEL 9 on",
    ),
    ("upgrade", "systems are not upgraded by kickstart"),
    ("auth", "use authselect"),
    ("authconfig", "use authselect"),
    ("key", "remove it"),
];

pub(super) fn lint(text: &str, expect: &Expect, findings: &mut Findings) {
    let mut seen = Seen::default();
    let mut section: Option<(String, Place)> = None;
    for (number, line) in text.lines().enumerate() {
        let place = (number + 1, line.len() - line.trim_start().len() + 1);
        let line = line.trim();
        let word = line.split_whitespace().next().unwrap_or_default();
        if let Some((name, start)) = &section {
            if word == "%end" {
                section = None;
            } else if SECTIONS.contains(&word) {
                findings.error(
                    place,
                    format!("'{name}' of line {} has no %end before this", start.0),
                    "end it with a line %end",
                );
                section = Some(begin(word, line, place, &mut seen, findings));
            }
            continue;
        }
        match word {
            "" => {}
            _ if word.starts_with('#') => {}
            "%include" | "%ksappend" => seen.included = true,
            "%end" => findings.error(place, "%end without a section before it", "remove it"),
            _ if SECTIONS.contains(&word) => {
                section = Some(begin(word, line, place, &mut seen, findings));
            }
            _ if word.starts_with('%') => findings.unknown(place, "section", word, SECTIONS),
            _ => command(word, line, place, expect, &mut seen, findings),
        }
    }
    if let Some((name, start)) = section {
        findings.error(
            start,
            format!("'{name}' has no %end"),
            "end it with a line %end",
        );
    }
    seen.judge(expect, findings);
}

fn begin(
    name: &str,
    line: &str,
    place: Place,
    seen: &mut Seen,
    findings: &mut Findings,
) -> (String, Place) {
    match name {
        "%pre" => seen.scripted = true,
        "%onerror" => seen.on_error = true,
        _ => {}
    }
    if matches!(name, "%pre" | "%pre-install" | "%post") && !line.contains("--erroronfail") {
        findings.warning(
            place,
            format!("a failure of this {name} script would go unseen"),
            format!("write {name} --erroronfail"),
        );
    }
    (name.to_owned(), place)
}

#[derive(Default)]
struct Seen {
    end: Option<(String, Place)>,
    source: bool,
    storage: bool,
    zerombr: bool,
    clearpart: bool,
    root: bool,
    user: bool,
    mode: bool,
    lang: bool,
    keyboard: bool,
    timezone: bool,
    /// Part of the file comes from elsewhere.
    included: bool,
    /// A script may write what is included.
    scripted: bool,
    on_error: bool,
}

fn command(
    word: &str,
    line: &str,
    place: Place,
    expect: &Expect,
    seen: &mut Seen,
    findings: &mut Findings,
) {
    if let Some((_, remedy)) = GONE.iter().find(|(name, _)| *name == word) {
        findings.warning(place, format!("'{word}' is a command of the past"), *remedy);
    }
    let Some(words) = words(line) else {
        findings.error(place, "a quote is not closed", "close it");
        return;
    };
    match word {
        "reboot" | "poweroff" | "shutdown" | "halt" => {
            seen.end = Some((word.to_owned(), place));
        }
        "url" | "cdrom" | "harddrive" | "nfs" | "hmc" | "liveimg" | "ostreesetup"
        | "ostreecontainer" | "method" | "bootc" => seen.source = true,
        "autopart" | "part" | "partition" | "logvol" | "btrfs" | "raid" | "mount" | "stratisfs" => {
            seen.storage = true;
        }
        "zerombr" => seen.zerombr = true,
        "clearpart" => seen.clearpart = true,
        "text" | "cmdline" => seen.mode = true,
        "lang" => seen.lang = true,
        "keyboard" => seen.keyboard = true,
        "timezone" => seen.timezone = true,
        "rootpw" => {
            seen.root = true;
            password(&words, place, findings);
        }
        "user" => {
            let admin =
                option(&words, "--groups").is_some_and(|g| g.split(',').any(|g| g == "wheel"));
            seen.user |= admin;
            user_password(&words, place, findings);
        }
        _ if COMMANDS.contains(&word) => {}
        _ => findings.unknown(place, "command", word, COMMANDS),
    }
    for name in [
        "--drives",
        "--only-use",
        "--ondisk",
        "--ondrive",
        "--boot-drive",
        "--driveorder",
    ] {
        for disk in option(&words, name).unwrap_or_default().split(',') {
            findings.disk(place, disk, expect);
        }
    }
}

/// `--name=value` or `--name value`.
fn option<'a>(words: &'a [String], name: &str) -> Option<&'a str> {
    words.iter().enumerate().find_map(|(at, word)| {
        let rest = word.strip_prefix(name)?;
        match rest.strip_prefix('=') {
            Some(value) => Some(value),
            None if rest.is_empty() => words.get(at + 1).map(String::as_str),
            None => None,
        }
    })
}

fn password(words: &[String], place: Place, findings: &mut Findings) {
    let has = |name: &str| words.iter().any(|word| word == name);
    let value = words.iter().skip(1).find(|word| !word.starts_with("--"));
    match value {
        None if !has("--lock") && !has("--allow-ssh") => findings.error(
            place,
            "no password is given: the installer would ask for one",
            "write rootpw --iscrypted HASH, or rootpw --lock",
        ),
        None => {}
        Some(value) => hashed(
            value,
            has("--iscrypted"),
            has("--plaintext"),
            place,
            findings,
        ),
    }
}

fn user_password(words: &[String], place: Place, findings: &mut Findings) {
    let has = |name: &str| words.iter().any(|word| word == name);
    if option(words, "--name").is_none() {
        findings.error(place, "the user has no name", "write user --name=NAME");
    }
    if let Some(value) = option(words, "--password") {
        hashed(
            value,
            has("--iscrypted"),
            has("--plaintext"),
            place,
            findings,
        );
    }
}

fn hashed(value: &str, crypted: bool, plain: bool, place: Place, findings: &mut Findings) {
    match (is_hashed(value), crypted) {
        (false, false) => findings.warning(
            place,
            "the password stands here for all to read",
            "write --iscrypted and its hash (openssl passwd -6)",
        ),
        (false, true) => findings.error(
            place,
            "--iscrypted is said of a password that is no hash: nobody could log in",
            "give the hash (openssl passwd -6)",
        ),
        (true, false) if !plain => findings.error(
            place,
            "the password looks like a hash, and is not said to be one",
            "add --iscrypted",
        ),
        _ => {}
    }
}

impl Seen {
    fn judge(&self, expect: &Expect, findings: &mut Findings) {
        // What is included may have what is not found here.
        let open = self.included;
        let mut hang = |missing: bool, message: &str, remedy: &str| {
            if missing && open {
                findings.warning(
                    (0, 0),
                    format!("{message}, unless an included file says"),
                    remedy,
                );
            } else if missing {
                findings.error((0, 0), message, remedy);
            }
        };
        hang(
            self.end.is_none(),
            "no end is given: the installer would wait for a key when it is done",
            "add poweroff or reboot",
        );
        hang(
            !self.storage,
            "no partitioning is given: the installer would ask for it",
            "add autopart, or part and its relatives",
        );
        hang(
            !self.root && !self.user,
            "no root password and no administrator is given: the installer would ask",
            "add rootpw --iscrypted HASH, or rootpw --lock and user --groups=wheel",
        );
        hang(
            !self.source && !expect.source_given,
            "no source of packages is given: the installer would ask",
            "add url --url=…, cdrom or another source, or inst.repo= on the command line",
        );
        let mut advise = |missing: bool, message: &str, remedy: &str| {
            if missing && !open {
                findings.warning((0, 0), message, remedy);
            }
        };
        advise(
            !self.zerombr,
            "a disk without a partition table may stop the install",
            "add zerombr",
        );
        advise(
            !self.clearpart,
            "a disk that has partitions may have no room",
            "add clearpart --all --initlabel",
        );
        advise(
            !self.mode,
            "the installer starts a screen, which can ask",
            "add text, or cmdline, which fails where it would ask",
        );
        advise(!self.lang, "no language is given", "add lang en_US.UTF-8");
        advise(!self.keyboard, "no keyboard is given", "add keyboard us");
        advise(!self.timezone, "no time zone is given", "add timezone UTC");
        if let Some((word, place)) = &self.end
            && word == "halt"
        {
            findings.warning(
                *place,
                "a halted guest goes on running until the time is up",
                "write poweroff",
            );
        }
    }
}

/// Splits a line as a shell would; `None` if a quote is not closed. What follows `#` is a
/// comment.
fn words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = line.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('"') | None, '\\') => word.get_or_insert_default().extend(rest.next()),
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}
