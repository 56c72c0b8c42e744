//! cloud-init's user data, meta data and network configuration
//! (<https://docs.cloud-init.io/en/latest/reference/>).

use super::yaml::{self, Node};
use super::{Findings, is_hashed};

#[rustfmt::skip]
const KEYS: &[&str] = &[
    "allow_public_ssh_keys", "ansible", "apk_repos", "apt", "apt_pipelining", "apt_reboot_if_required",
    "apt_update", "apt_upgrade", "apt_preserve_sources_list", "apt_sources", "apt_mirror",
    "autoinstall", "bootcmd", "byobu_by_default", "ca-certs", "ca_certs", "chef", "chpasswd",
    "cloud_config_modules", "cloud_final_modules", "cloud_init_modules", "create_hostname_file",
    "datasource", "datasource_list", "debug", "device_aliases", "disable_ec2_metadata",
    "disable_root", "disable_root_opts", "disk_setup", "drivers", "fan", "final_message", "fqdn",
    "fs_setup", "groups", "growpart", "grub_dpkg", "grub-dpkg", "hostname", "keyboard", "landscape",
    "launch-index", "locale", "locale_configfile", "log_cfgs", "lxd", "manage-resolv-conf",
    "manage_etc_hosts", "manage_resolv_conf", "mcollective", "merge_how", "merge_type",
    "migrate", "mount_default_fields", "mounts", "network", "no_ssh_fingerprints", "ntp", "output",
    "package_reboot_if_required", "package_update", "package_upgrade", "packages", "password",
    "phone_home", "power_state", "prefer_fqdn_over_hostname", "preserve_hostname", "puppet",
    "random_seed", "raspberry_pi", "reporting", "resize_rootfs", "resolv_conf", "rh_subscription",
    "rpi", "rsyslog", "runcmd", "salt_minion", "seed_random", "snap", "spacewalk", "ssh",
    "ssh_authorized_keys", "ssh_deletekeys", "ssh_fp_console_blacklist", "ssh_genkeytypes",
    "ssh_import_id", "ssh_key_console_blacklist", "ssh_keys", "ssh_publish_hostkeys", "ssh_pwauth",
    "ssh_quiet_keygen", "swap", "syslog_fix_perms", "system_info", "timezone", "ubuntu_advantage",
    "ubuntu_autoinstall", "ubuntu_pro", "unverified_modules", "updates", "user", "users",
    "vendor_data", "vendor_data2", "version", "wireguard", "write_files", "yum_repo_dir",
    "yum_repos", "zypper",
];

/// First lines that make user data something else than cloud-config.
const OTHER_HEADERS: &[&str] = &[
    "#!",
    "#include",
    "#cloud-boothook",
    "#cloud-config-archive",
    "#cloud-config-jsonp",
    "#part-handler",
    "## template: jinja",
    "Content-Type: multipart",
    "MIME-Version:",
];

/// Whether this is a key of cloud-config.
pub(super) fn is_key(name: &str) -> bool {
    KEYS.contains(&name)
}

/// Whether user data are of another kind than cloud-config, which is not looked into.
pub(super) fn is_other(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    OTHER_HEADERS.iter().any(|header| first.starts_with(header))
}

/// User data are taken for cloud-config by their first line alone.
pub(super) fn header(text: &str, findings: &mut Findings) {
    let first = text.lines().next().unwrap_or_default();
    if first.trim_end() != "#cloud-config" {
        findings.error(
            (1, 1),
            "the first line is not '#cloud-config': cloud-init would pass the file over",
            "write #cloud-config as the first line, without a blank in it",
        );
    }
}

pub(super) fn lint(text: &str, findings: &mut Findings) {
    if is_other(text) {
        return;
    }
    header(text, findings);
    let Some(document) = yaml::read(text, findings) else {
        return;
    };
    if !document.is_mapping() {
        if !document.is_null() {
            findings.error(
                document.place,
                format!("the file is {}, not a mapping", document.what()),
                "write keys with values",
            );
        }
        return;
    }
    for (key, value) in document.entries() {
        match key.text() {
            Some(name) if is_key(name) => shape(name, value, findings),
            name => {
                let name = name.unwrap_or_default();
                findings.unknown(key.place, "key", name, KEYS);
            }
        }
    }
    users(&document, findings);
    passwords(&document, findings);
    phone_home(&document, findings);
    power_state(&document, findings);
    write_files(&document, findings);
}

fn shape(name: &str, value: &Node, findings: &mut Findings) {
    let lists = [
        "runcmd",
        "bootcmd",
        "packages",
        "write_files",
        "ssh_authorized_keys",
        "mounts",
        "ssh_import_id",
        "fs_setup",
    ];
    let mappings = [
        "chpasswd",
        "phone_home",
        "power_state",
        "apt",
        "growpart",
        "ntp",
        "disk_setup",
        "yum_repos",
        "ssh_keys",
        "swap",
    ];
    let expected = if lists.contains(&name) && !value.is_sequence() {
        "a list"
    } else if mappings.contains(&name) && !value.is_mapping() {
        "a mapping"
    } else {
        return;
    };
    findings.error(
        value.place,
        format!("'{name}' is {}", value.what()),
        format!("write {expected}"),
    );
}

fn users(document: &Node, findings: &mut Findings) {
    let mut keys = document
        .get("ssh_authorized_keys")
        .is_some_and(|keys| !keys.items().is_empty())
        || document.get("ssh_import_id").is_some();
    let mut password = document.get("password").is_some() || document.get("chpasswd").is_some();
    for user in document.get("users").map(Node::items).unwrap_or_default() {
        if !user.is_mapping() {
            continue;
        }
        if user.get("name").is_none() && user.get("snapuser").is_none() {
            findings.error(user.place, "a user has a name", "add name:");
        }
        let any = |names: &[&str]| names.iter().any(|name| user.get(name).is_some());
        keys |= any(&[
            "ssh_authorized_keys",
            "ssh-authorized-keys",
            "ssh_import_id",
        ]);
        let own = any(&["passwd", "hashed_passwd", "plain_text_passwd"]);
        password |= own;
        // A user is made with a locked password.
        if own && user.get("lock_passwd").and_then(Node::truth) != Some(false) {
            findings.warning(
                user.place,
                "the user's password is locked, and cannot be used",
                "add lock_passwd: false",
            );
        }
    }
    if !keys && !password {
        findings.warning(
            (0, 0),
            "nobody could log in: there are no SSH keys and no passwords",
            "add users: with ssh_authorized_keys:",
        );
    }
}

fn passwords(document: &Node, findings: &mut Findings) {
    let hashed = ["passwd", "hashed_passwd"];
    for user in document.get("users").map(Node::items).unwrap_or_default() {
        for key in hashed {
            if let Some(value) = user.get(key)
                && value.text().is_some_and(|text| !is_hashed(text))
            {
                findings.error(
                    value.place,
                    format!("{key} is no hash: nobody could log in"),
                    "give the hash in quotes (openssl passwd -6)",
                );
            }
        }
        if let Some(value) = user.get("plain_text_passwd") {
            plain(value, findings);
        }
    }
    if let Some(value) = document.get("password")
        && value.text().is_some_and(|text| !is_hashed(text))
    {
        plain(value, findings);
    }
    let Some(chpasswd) = document.get("chpasswd") else {
        if let Some(value) = document.get("password") {
            expires(value, findings);
        }
        return;
    };
    if chpasswd.get("expire").and_then(Node::truth) != Some(false) {
        expires(chpasswd, findings);
    }
}

fn plain(value: &Node, findings: &mut Findings) {
    findings.warning(
        value.place,
        "the password stands here for all to read",
        "give its hash (openssl passwd -6)",
    );
}

fn expires(value: &Node, findings: &mut Findings) {
    findings.warning(
        value.place,
        "the password expires at once, and must be changed at the first login",
        "add chpasswd: {expire: false}",
    );
}

fn phone_home(document: &Node, findings: &mut Findings) {
    let Some(phone) = document.get("phone_home") else {
        return;
    };
    let known = ["url", "post", "tries"];
    for (key, _) in phone.entries() {
        let name = key.text().unwrap_or_default();
        if !known.contains(&name) {
            findings.unknown(key.place, "key of phone_home", name, &known);
        }
    }
    if phone.get("url").and_then(Node::text).is_none() {
        findings.error(phone.place, "phone_home has no url", "add url:");
    }
}

fn power_state(document: &Node, findings: &mut Findings) {
    let Some(power) = document.get("power_state") else {
        return;
    };
    let known = ["poweroff", "reboot", "halt"];
    match power.get("mode") {
        Some(mode) if known.contains(&mode.text().unwrap_or_default()) => {}
        Some(mode) => {
            findings.unknown(mode.place, "mode", mode.text().unwrap_or_default(), &known);
        }
        None => findings.error(power.place, "power_state has no mode", "add mode: poweroff"),
    }
}

fn write_files(document: &Node, findings: &mut Findings) {
    for file in document
        .get("write_files")
        .map(Node::items)
        .unwrap_or_default()
    {
        match file.get("path").and_then(Node::text) {
            None => findings.error(file.place, "a file has a path", "add path:"),
            Some(path) if !path.starts_with('/') => {
                findings.error(file.place, "the path is not absolute", "begin it with /");
            }
            Some(_) => {}
        }
        // 644 without a quote is a number of ten, and another mode.
        if let Some(mode) = file.get("permissions")
            && let yaml::Value::Scalar { plain: true, .. } = mode.value
        {
            findings.warning(
                mode.place,
                "permissions without quotes are read as a number",
                "write them in quotes: '0644'",
            );
        }
    }
}

pub(super) fn lint_meta_data(text: &str, findings: &mut Findings) {
    let Some(document) = yaml::read(text, findings) else {
        return;
    };
    let known = [
        "instance-id",
        "local-hostname",
        "hostname",
        "network-interfaces",
        "public-keys",
        "dsmode",
        "cloud-name",
        "availability-zone",
        "region",
        "platform",
        "launch-index",
        "subplatform",
        "availability_zone",
        "cloud_name",
    ];
    if document.get("instance-id").and_then(Node::text).is_none() {
        findings.error(
            document.place,
            "no instance-id is given: cloud-init would not take the seed for one",
            "add instance-id:, new for each guest",
        );
    }
    for (key, _) in document.entries() {
        if let Some(name) = key.text()
            && !known.contains(&name)
            && let Some(near) = super::nearest(name, &known)
        {
            findings.warning(
                key.place,
                format!("nothing reads '{name}'"),
                format!("did you mean '{near}'?"),
            );
        }
    }
}

pub(super) fn lint_network_config(text: &str, findings: &mut Findings) {
    let Some(document) = yaml::read(text, findings) else {
        return;
    };
    let config = document.get("network").unwrap_or(&document);
    let version = config.get("version").and_then(Node::text);
    let (known, what): (&[&str], _) = match version {
        Some("1") => (&["version", "config"], "version 1"),
        Some("2") => (
            &[
                "version",
                "renderer",
                "ethernets",
                "bonds",
                "bridges",
                "vlans",
                "wifis",
                "modems",
                "tunnels",
                "vrfs",
                "dummy-devices",
            ],
            "version 2",
        ),
        _ => {
            findings.error(
                config.place,
                "no version that is known is given",
                "add version: 2",
            );
            return;
        }
    };
    for (key, _) in config.entries() {
        let name = key.text().unwrap_or_default();
        if !known.contains(&name) {
            findings.unknown(key.place, &format!("key of {what}"), name, known);
        }
    }
    if version == Some("1") && !config.get("config").is_some_and(Node::is_sequence) {
        findings.error(config.place, "version 1 has a list 'config'", "add config:");
    }
}
