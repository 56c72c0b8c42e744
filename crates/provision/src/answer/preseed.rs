//! Preseed files, as debconf and debian-installer read them (Debian Installation Guide,
//! appendix B).

use std::collections::HashMap;

use super::{Expect, Findings, Place, is_hashed, nearest};

const TYPES: &[&str] = &[
    "string",
    "boolean",
    "select",
    "multiselect",
    "note",
    "password",
    "text",
    "title",
    "error",
    "seen",
];

/// Questions that are preseeded as a rule: debconf takes a misspelt name in silence, so one
/// that is near to these and none of them is told.
#[rustfmt::skip]
const QUESTIONS: &[&str] = &[
    "debian-installer/locale", "debian-installer/language", "debian-installer/country",
    "debian-installer/exit/poweroff", "debian-installer/exit/halt", "debian-installer/exit/always_halt",
    "debian-installer/add-kernel-opts", "debian-installer/allow_unauthenticated",
    "localechooser/supported-locales", "keyboard-configuration/xkb-keymap",
    "keyboard-configuration/toggle", "keyboard-configuration/layoutcode", "console-setup/ask_detect",
    "console-setup/layoutcode", "netcfg/enable", "netcfg/choose_interface", "netcfg/link_wait_timeout",
    "netcfg/dhcp_timeout", "netcfg/disable_autoconfig", "netcfg/disable_dhcp", "netcfg/dhcp_options",
    "netcfg/get_ipaddress", "netcfg/get_netmask", "netcfg/get_gateway", "netcfg/get_nameservers",
    "netcfg/confirm_static", "netcfg/get_hostname", "netcfg/get_domain", "netcfg/hostname",
    "netcfg/wireless_wep", "netcfg/dhcp_hostname", "hw-detect/load_firmware",
    "network-console/password", "network-console/password-again", "network-console/start",
    "mirror/country", "mirror/protocol", "mirror/http/hostname", "mirror/http/countries",
    "mirror/http/directory", "mirror/http/proxy", "mirror/http/mirror", "mirror/https/hostname",
    "mirror/https/directory", "mirror/https/proxy", "mirror/ftp/hostname", "mirror/suite",
    "mirror/udeb/suite", "passwd/root-login", "passwd/make-user", "passwd/root-password",
    "passwd/root-password-again", "passwd/root-password-crypted", "passwd/user-fullname",
    "passwd/username", "passwd/user-password", "passwd/user-password-again",
    "passwd/user-password-crypted", "passwd/user-uid", "passwd/user-default-groups",
    "user-setup/allow-password-weak", "user-setup/encrypt-home", "clock-setup/utc",
    "clock-setup/ntp", "clock-setup/ntp-server", "time/zone", "partman-auto/init_automatically_partition",
    "partman-auto/disk", "partman-auto/method", "partman-auto/choose_recipe",
    "partman-auto/expert_recipe", "partman-auto/expert_recipe_file", "partman-auto/cap-ram",
    "partman-auto-lvm/guided_size", "partman-auto-lvm/new_vg_name", "partman-auto-lvm/no_boot",
    "partman-lvm/device_remove_lvm", "partman-lvm/confirm", "partman-lvm/confirm_nooverwrite",
    "partman-md/device_remove_md", "partman-md/confirm", "partman-md/confirm_nooverwrite",
    "partman-auto-raid/recipe", "partman-auto-crypto/erase_disks", "partman-crypto/passphrase",
    "partman-crypto/passphrase-again", "partman-crypto/weak_passphrase", "partman-basicfilesystems/no_swap",
    "partman-basicfilesystems/no_mount_point", "partman-partitioning/confirm_write_new_label",
    "partman-partitioning/default_label", "partman-partitioning/no_bootable_gpt_biosgrub",
    "partman-partitioning/choose_label", "partman-efi/non_efi_system", "partman/choose_partition",
    "partman/confirm", "partman/confirm_nooverwrite", "partman/confirm_write_new_label",
    "partman/default_filesystem", "partman/early_command", "partman/mount_style", "partman/alignment",
    "partman/unmount_active", "base-installer/kernel/image", "base-installer/kernel/override-image",
    "base-installer/install-recommends", "base-installer/includes", "live-installer/net-image",
    "apt-setup/cdrom/set-first", "apt-setup/cdrom/set-next", "apt-setup/cdrom/set-failed",
    "apt-setup/cdrom/set-double", "apt-setup/disable-cdrom-entries", "apt-setup/non-free-firmware",
    "apt-setup/non-free", "apt-setup/contrib", "apt-setup/main", "apt-setup/restricted",
    "apt-setup/universe", "apt-setup/multiverse", "apt-setup/services-select",
    "apt-setup/security_host", "apt-setup/security_path", "apt-setup/use_mirror",
    "apt-setup/no_mirror", "apt-setup/enable-source-repositories", "apt-setup/multiarch",
    "pkgsel/include", "pkgsel/upgrade", "pkgsel/update-policy", "pkgsel/run_tasksel",
    "pkgsel/install-language-support", "pkgsel/language-packs", "grub-installer/skip",
    "grub-installer/only_debian", "grub-installer/with_other_os", "grub-installer/bootdev",
    "grub-installer/choose_bootdev", "grub-installer/password", "grub-installer/password-again",
    "grub-installer/password-crypted", "grub-installer/force-efi-extra-removable",
    "grub-installer/update-nvram", "grub-installer/enable_os_prober_otheros_yes",
    "finish-install/keep-consoles", "finish-install/reboot_in_progress", "cdrom-detect/eject",
    "cdrom-detect/try-usb", "cdrom-detect/load_media", "cdrom-detect/manual_config",
    "preseed/early_command", "preseed/late_command", "preseed/run", "preseed/include",
    "preseed/include_command", "preseed/include/checksum", "preseed/url", "preseed/file",
    "auto-install/enable", "anna/choose_modules", "anna/no_kernel_modules", "rescue/enable",
    "oem-config/enable", "ubiquity/success_command", "lilo-installer/skip", "nobootloader/confirmation_common",
];

struct Answer {
    value: String,
    place: Place,
}

pub(super) fn lint(text: &str, expect: &Expect, findings: &mut Findings) {
    let mut answers: HashMap<String, Answer> = HashMap::new();
    for (place, line) in logical_lines(text, findings) {
        let mut fields = line.split_whitespace();
        let (Some(owner), Some(question)) = (fields.next(), fields.next()) else {
            findings.error(
                place,
                "a line of one word",
                "write OWNER QUESTION TYPE VALUE",
            );
            continue;
        };
        let Some(kind) = fields.next() else {
            findings.error(place, "no type is given", "write OWNER QUESTION TYPE VALUE");
            continue;
        };
        if !TYPES.contains(&kind) {
            findings.unknown(place, "type", kind, TYPES);
            continue;
        }
        if !question.contains('/') {
            findings.error(
                place,
                "a question's name has a slash",
                "write OWNER QUESTION TYPE VALUE, as in d-i debian-installer/locale string C",
            );
        }
        let value = after_fields(&line, 3).to_owned();
        if kind == "boolean" && !matches!(value.as_str(), "true" | "false") {
            findings.error(place, "a truth is true or false", "write true or false");
        }
        if owner == "d-i" {
            misspelt(question, place, findings);
        }
        passwords(question, &value, place, findings);
        answers.insert(question.to_owned(), Answer { value, place });
    }
    judge(&answers, expect, findings);
}

/// Lines without comments; those that end in a backslash are joined with the next.
fn logical_lines(text: &str, findings: &mut Findings) -> Vec<(Place, String)> {
    let mut lines: Vec<(Place, String)> = Vec::new();
    let mut open = false;
    for (number, raw) in text.lines().enumerate() {
        let line = raw.trim();
        let (part, goes_on) = match line.strip_suffix('\\') {
            Some(part) => (part.trim_end(), true),
            None => (line, false),
        };
        if raw.ends_with([' ', '\t']) && line.ends_with('\\') {
            findings.error(
                (number + 1, raw.trim_end().chars().count()),
                "blanks after a backslash: the line does not go on",
                "remove them",
            );
        }
        if open {
            if let Some((_, last)) = lines.last_mut() {
                last.push(' ');
                last.push_str(part);
            }
            open = goes_on;
        } else if !line.is_empty() && !line.starts_with('#') {
            let indent = raw.chars().take_while(|c| c.is_whitespace()).count();
            lines.push(((number + 1, indent + 1), part.to_owned()));
            open = goes_on;
        }
    }
    if open {
        let place = lines.last().map_or((0, 0), |(place, _)| *place);
        findings.error(
            place,
            "the last line goes on to nothing",
            "remove the backslash",
        );
    }
    lines
}

/// What follows so many words.
pub(super) fn after_fields(line: &str, count: usize) -> &str {
    let mut rest = line.trim_start();
    for _ in 0..count {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        rest = rest.get(end..).unwrap_or_default().trim_start();
    }
    rest
}

fn misspelt(question: &str, place: Place, findings: &mut Findings) {
    let local = [
        "apt-setup/local",
        "partman-auto",
        "partman-crypto",
        "netcfg",
        "mirror",
    ];
    let free = question.starts_with("apt-setup/local") || question.ends_with("/seen");
    if free || QUESTIONS.contains(&question) {
        return;
    }
    // Names of these parts are many; only a name that is all but another is told.
    let bound = if local.iter().any(|part| question.starts_with(part)) {
        0.97
    } else {
        0.93
    };
    if let Some(near) = nearest(question, QUESTIONS)
        && strsim::jaro_winkler(question, near) > bound
    {
        findings.warning(
            place,
            format!("no question '{question}' is known: its answer would not be used"),
            format!("did you mean '{near}'?"),
        );
    }
}

fn passwords(question: &str, value: &str, place: Place, findings: &mut Findings) {
    let plain = [
        "passwd/root-password",
        "passwd/user-password",
        "grub-installer/password",
        "network-console/password",
    ];
    let crypted = [
        "passwd/root-password-crypted",
        "passwd/user-password-crypted",
    ];
    if plain.contains(&question) && !value.is_empty() {
        findings.warning(
            place,
            "the password stands here for all to read",
            format!("use {question}-crypted and its hash (openssl passwd -6)"),
        );
    }
    if crypted.contains(&question) && !is_hashed(value) {
        findings.error(
            place,
            "this is no hash of a password: nobody could log in",
            "give the hash (openssl passwd -6)",
        );
    }
}

fn judge(answers: &HashMap<String, Answer>, expect: &Expect, findings: &mut Findings) {
    let value = |question: &str| answers.get(question).map(|a| a.value.as_str());
    let given = |question: &str| value(question).is_some_and(|value| !value.is_empty());
    let open = ["preseed/include", "preseed/run", "preseed/include_command"]
        .iter()
        .any(|question| given(question));
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
    let root = value("passwd/root-login") != Some("false");
    let user = value("passwd/make-user") != Some("false");
    let password = |who: &str| {
        given(&format!("passwd/{who}-password-crypted")) || given(&format!("passwd/{who}-password"))
    };
    hang(
        root && !password("root"),
        "no root password is given: the installer would ask",
        "add passwd/root-password-crypted, or passwd/root-login boolean false",
    );
    hang(
        user && !password("user"),
        "no user's password is given: the installer would ask",
        "add passwd/username and passwd/user-password-crypted, or passwd/make-user boolean false",
    );
    hang(
        !root && !user,
        "neither root nor a user can log in: the installer would ask",
        "make one of them",
    );
    hang(
        user && !given("passwd/username"),
        "no user's name is given: the installer would ask",
        "add passwd/username, or passwd/make-user boolean false",
    );
    hang(
        !given("partman-auto/method") && !given("partman-auto/init_automatically_partition"),
        "no partitioning is given: the installer would ask",
        "add partman-auto/method string regular",
    );
    for (question, wanted) in [
        (
            "partman-partitioning/confirm_write_new_label",
            "boolean true",
        ),
        ("partman/choose_partition", "select finish"),
        ("partman/confirm", "boolean true"),
        ("partman/confirm_nooverwrite", "boolean true"),
    ] {
        let yes = wanted.rsplit(' ').next();
        hang(
            value(question) != yes,
            &format!("{question} is not answered: the installer would ask before it writes"),
            &format!("add d-i {question} {wanted}"),
        );
    }
    hang(
        !answers.contains_key("finish-install/reboot_in_progress"),
        "the installer would wait for a key when it is done",
        "add d-i finish-install/reboot_in_progress note",
    );
    advise(answers, open, findings);
    for question in ["partman-auto/disk", "grub-installer/bootdev"] {
        if let Some(answer) = answers.get(question) {
            for disk in answer.value.split_whitespace().filter(|d| *d != "default") {
                findings.disk(answer.place, disk, expect);
            }
        }
    }
}

fn advise(answers: &HashMap<String, Answer>, open: bool, findings: &mut Findings) {
    let given = |question: &str| answers.get(question).is_some_and(|a| !a.value.is_empty());
    let mut advise = |missing: bool, message: &str, remedy: &str| {
        if missing && !open {
            findings.warning((0, 0), message, remedy);
        }
    };
    advise(
        !given("debian-installer/locale") && !given("debian-installer/language"),
        "no locale is given",
        "add d-i debian-installer/locale string en_US.UTF-8",
    );
    advise(
        !given("keyboard-configuration/xkb-keymap"),
        "no keyboard is given",
        "add d-i keyboard-configuration/xkb-keymap select us",
    );
    advise(
        !given("grub-installer/bootdev") && !given("grub-installer/skip"),
        "no disk is given for the boot loader: with several, the installer would ask",
        "add d-i grub-installer/bootdev string default",
    );
    let lvm = answers
        .get("partman-auto/method")
        .is_some_and(|a| a.value == "lvm");
    for question in ["partman-lvm/confirm", "partman-lvm/confirm_nooverwrite"] {
        advise(
            lvm && !given(question),
            &format!("{question} is not answered: the installer would ask before it writes"),
            &format!("add d-i {question} boolean true"),
        );
    }
}
