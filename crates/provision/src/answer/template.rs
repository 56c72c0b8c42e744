//! Answer files written from parameters: `--unattended`.
//!
//! The four kinds give the same system as nearly as their installers allow: one disk taken
//! whole, one administrator, an SSH server, the first serial line as console, packages that
//! were asked for, and an end that is the guest's own.

use serde_json::{Value, json};
use thiserror::Error as ThisError;

use super::Kind;
use super::hooks;
use super::secret::PasswordHash;

/// Why no answer file was written.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum TemplateError {
    /// A value that cannot be.
    #[error("{what} '{value}': {expected} expected")]
    Value {
        /// Which parameter.
        what: &'static str,
        /// The value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Nobody could log in.
    #[error("nobody could log in: give the user a password or an SSH key, or root a password")]
    NoLogin,
    /// A source that this kind of installer does not take.
    #[error("{kind} takes no such source of packages: {expected}")]
    Source {
        /// Kind of answer file.
        kind: Kind,
        /// What it would take.
        expected: &'static str,
    },
    /// The file could not be printed.
    #[error("{0}")]
    Print(String),
}

/// The administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Hash of the password; none for one that logs in by key alone, and then needs no
    /// password to become root.
    pub password: Option<PasswordHash>,
    /// Lines of `authorized_keys`.
    pub ssh_keys: Vec<String>,
}

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The media that the installer came from, or what the kernel's command line says.
    Media,
    /// A tree on a server: `http://mirror/fedora/…`, or for debian-installer the mirror with
    /// its folder.
    Url(String),
}

/// How the install ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest powers off.
    Poweroff,
    /// The guest resets.
    Reboot,
}

/// What is to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Host name, with its domain or without.
    pub hostname: String,
    /// The administrator.
    pub user: Option<User>,
    /// Hash of root's password; root is locked without.
    pub root: Option<PasswordHash>,
    /// Locale, such as `en_US.UTF-8`.
    pub locale: String,
    /// Keyboard layout of X, such as `us`.
    pub keyboard: String,
    /// Time zone, such as `Europe/Berlin`.
    pub timezone: String,
    /// Packages beside the usual.
    pub packages: Vec<String>,
    /// Name of the disk in the guest, such as `vda`.
    pub disk: String,
    /// Where packages come from.
    pub source: Source,
    /// How the install ends.
    pub end: End,
}

impl Parameters {
    /// A system of a name with the usual settings, and nobody who could log in.
    pub fn new(hostname: &str) -> Self {
        Self {
            hostname: hostname.to_owned(),
            user: None,
            root: None,
            locale: "en_US.UTF-8".to_owned(),
            keyboard: "us".to_owned(),
            timezone: "UTC".to_owned(),
            packages: Vec::new(),
            disk: "vda".to_owned(),
            source: Source::Media,
            end: End::Reboot,
        }
    }

    fn check(&self) -> Result<(), TemplateError> {
        let value = |what, value: &str, good: bool, expected| {
            good.then_some(()).ok_or_else(|| TemplateError::Value {
                what,
                value: value.chars().take(60).collect(),
                expected,
            })
        };
        let of = |text: &str, more: &str, limit: usize| {
            let known = |c: char| c.is_ascii_alphanumeric() || more.contains(c);
            !text.is_empty()
                && text.len() <= limit
                && text.chars().all(known)
                && !text.starts_with(['-', '.'])
        };
        value(
            "hostname",
            &self.hostname,
            of(&self.hostname, "-.", 253),
            "letters, digits, '-'",
        )?;
        value(
            "locale",
            &self.locale,
            of(&self.locale, "_.@-", 40),
            "a name such as en_US.UTF-8",
        )?;
        value(
            "keyboard",
            &self.keyboard,
            of(&self.keyboard, "_-", 20),
            "a layout such as us",
        )?;
        value(
            "timezone",
            &self.timezone,
            of(&self.timezone, "/_+-", 60),
            "a name such as UTC",
        )?;
        value(
            "disk",
            &self.disk,
            of(&self.disk, "", 16),
            "a name such as vda",
        )?;
        for package in &self.packages {
            let bare = package.trim_start_matches(['@', '^']);
            value(
                "package",
                package,
                of(bare, "+.-_:", 100),
                "a package's name",
            )?;
        }
        if let Source::Url(url) = &self.source {
            let good = ["http://", "https://", "ftp://"]
                .iter()
                .any(|s| url.starts_with(s))
                && of(url, ":/.-_~%+?=&,@", 1000);
            value("source", url, good, "a URL")?;
        }
        let mut login = self.root.is_some();
        if let Some(user) = &self.user {
            let good = of(&user.name, "_-", 32)
                && !user.name.starts_with(|c: char| c.is_ascii_digit())
                && user.name.chars().all(|c| !c.is_ascii_uppercase())
                && user.name != "root";
            value(
                "user",
                &user.name,
                good,
                "lower case letters, digits, '_' and '-'",
            )?;
            for key in &user.ssh_keys {
                let type_known = ["ssh-", "ecdsa-", "sk-"].iter().any(|t| key.starts_with(t));
                let good = type_known && key.contains(' ') && of(key, "+/=-_.@ :", 8000);
                value("SSH key", key, good, "one line as in id_ed25519.pub")?;
            }
            login |= user.password.is_some() || !user.ssh_keys.is_empty();
        }
        if login {
            Ok(())
        } else {
            Err(TemplateError::NoLogin)
        }
    }

    /// The answer file.
    ///
    /// # Errors
    /// [`TemplateError`].
    pub fn render(&self, kind: Kind) -> Result<String, TemplateError> {
        self.check()?;
        match kind {
            Kind::Kickstart => Ok(self.kickstart()),
            Kind::Preseed => self.preseed(),
            Kind::Autoinstall => self.autoinstall(),
            Kind::CloudInit => self.cloud_init(),
        }
    }

    /// cloud-init's meta data; `instance` is new for each guest.
    ///
    /// # Errors
    /// [`TemplateError::Value`].
    pub fn meta_data(&self, instance: &str) -> Result<String, TemplateError> {
        self.check()?;
        let data = json!({ "instance-id": instance, "local-hostname": self.hostname });
        serde_norway::to_string(&data).map_err(|error| TemplateError::Print(error.to_string()))
    }

    fn kickstart(&self) -> String {
        let mut lines = vec![
            "text".to_owned(),
            format!("lang {}", self.locale),
            format!("keyboard --xlayouts='{}'", self.keyboard),
            format!("timezone {} --utc", self.timezone),
            format!(
                "network --bootproto=dhcp --onboot=yes --hostname={}",
                self.hostname
            ),
        ];
        if let Source::Url(url) = &self.source {
            lines.push(format!("url --url={url}"));
        }
        lines.push(match &self.root {
            Some(hash) => format!("rootpw --iscrypted {}", hash.expose()),
            None => "rootpw --lock".to_owned(),
        });
        if let Some(user) = &self.user {
            let password = match &user.password {
                Some(hash) => format!("--iscrypted --password={}", hash.expose()),
                None => "--lock".to_owned(),
            };
            lines.push(format!(
                "user --name={} --groups=wheel {password}",
                user.name
            ));
            // The command takes one key of a user; the others follow by a script.
            if let Some(key) = user.ssh_keys.first() {
                lines.push(format!("sshkey --username={} \"{key}\"", user.name));
            }
        }
        lines.extend([
            "services --enabled=sshd".to_owned(),
            "firstboot --disable".to_owned(),
            "zerombr".to_owned(),
            format!("ignoredisk --only-use={}", self.disk),
            format!("clearpart --all --initlabel --drives={}", self.disk),
            "autopart --type=plain".to_owned(),
            "bootloader --append=\"console=tty0 console=ttyS0\"".to_owned(),
            match self.end {
                End::Poweroff => "poweroff".to_owned(),
                End::Reboot => "reboot".to_owned(),
            },
            String::new(),
            "%packages".to_owned(),
            "@core".to_owned(),
            "openssh-server".to_owned(),
        ]);
        lines.extend(self.packages.iter().cloned());
        lines.push("%end".to_owned());
        let mut script: Vec<String> = Vec::new();
        if let Some(user) = &self.user {
            for key in user.ssh_keys.iter().skip(1) {
                let file = format!("/home/{}/.ssh/authorized_keys", user.name);
                script.push(format!("echo '{key}' >> {file}"));
            }
            if user.password.is_none() {
                script.push(sudo_line(&user.name, ""));
            }
        }
        if !script.is_empty() {
            lines.extend([
                String::new(),
                "%post --erroronfail".to_owned(),
                "set -e".to_owned(),
            ]);
            lines.extend(script);
            lines.push("%end".to_owned());
        }
        finish(lines)
    }

    fn preseed(&self) -> Result<String, TemplateError> {
        let (host, domain) = self
            .hostname
            .split_once('.')
            .unwrap_or((&self.hostname, ""));
        let mut lines = vec![
            format!("debian-installer/locale string {}", self.locale),
            format!("keyboard-configuration/xkb-keymap select {}", self.keyboard),
            "netcfg/choose_interface select auto".to_owned(),
            format!("netcfg/get_hostname string {host}"),
            format!("netcfg/get_domain string {domain}"),
            format!("netcfg/hostname string {host}"),
            "hw-detect/load_firmware boolean false".to_owned(),
        ];
        if let Source::Url(url) = &self.source {
            let (server, folder) = mirror(url).ok_or(TemplateError::Source {
                kind: Kind::Preseed,
                expected: "http://SERVER/FOLDER",
            })?;
            lines.extend([
                "mirror/country string manual".to_owned(),
                "mirror/protocol string http".to_owned(),
                format!("mirror/http/hostname string {server}"),
                format!("mirror/http/directory string {folder}"),
                "mirror/http/proxy string".to_owned(),
            ]);
        } else {
            lines.extend([
                "apt-setup/use_mirror boolean false".to_owned(),
                "apt-setup/no_mirror boolean true".to_owned(),
                "apt-setup/cdrom/set-first boolean false".to_owned(),
            ]);
        }
        match &self.root {
            Some(hash) => lines.extend([
                "passwd/root-login boolean true".to_owned(),
                format!("passwd/root-password-crypted password {}", hash.expose()),
            ]),
            None => lines.push("passwd/root-login boolean false".to_owned()),
        }
        match &self.user {
            Some(user) => lines.extend([
                "passwd/make-user boolean true".to_owned(),
                format!("passwd/user-fullname string {}", user.name),
                format!("passwd/username string {}", user.name),
                format!(
                    "passwd/user-password-crypted password {}",
                    user.password.as_ref().map_or("!", PasswordHash::expose)
                ),
                "passwd/user-default-groups string sudo adm".to_owned(),
            ]),
            None => lines.push("passwd/make-user boolean false".to_owned()),
        }
        lines.extend([
            "clock-setup/utc boolean true".to_owned(),
            "clock-setup/ntp boolean false".to_owned(),
            format!("time/zone string {}", self.timezone),
            format!("partman-auto/disk string /dev/{}", self.disk),
            "partman-auto/method string regular".to_owned(),
            "partman-auto/choose_recipe select atomic".to_owned(),
            "partman-lvm/device_remove_lvm boolean true".to_owned(),
            "partman-md/device_remove_md boolean true".to_owned(),
            "partman-partitioning/confirm_write_new_label boolean true".to_owned(),
            "partman/choose_partition select finish".to_owned(),
            "partman/confirm boolean true".to_owned(),
            "partman/confirm_nooverwrite boolean true".to_owned(),
            format!(
                "pkgsel/include string openssh-server sudo {}",
                self.packages.join(" ")
            ),
            "grub-installer/only_debian boolean true".to_owned(),
            "grub-installer/with_other_os boolean true".to_owned(),
            format!("grub-installer/bootdev string /dev/{}", self.disk),
            "debian-installer/add-kernel-opts string console=tty0 console=ttyS0".to_owned(),
            "cdrom-detect/eject boolean false".to_owned(),
            "finish-install/reboot_in_progress note".to_owned(),
        ]);
        if self.end == End::Poweroff {
            lines.push("debian-installer/exit/poweroff boolean true".to_owned());
        }
        if let Some(commands) = self.user.as_ref().and_then(|user| self.keys_by_hand(user)) {
            lines.push(format!("preseed/late_command string {commands}"));
        }
        let mut file: Vec<String> = lines
            .into_iter()
            .map(|line| format!("d-i {}", line.trim_end()))
            .collect();
        file.push("tasksel tasksel/first multiselect standard".to_owned());
        file.push("popularity-contest popularity-contest/participate boolean false".to_owned());
        Ok(finish(file))
    }

    /// debian-installer takes no SSH keys; a command puts them in place.
    fn keys_by_hand(&self, user: &User) -> Option<String> {
        let mut commands = Vec::new();
        let home = format!("/home/{}", user.name);
        if !user.ssh_keys.is_empty() {
            commands.push(format!("in-target install -d -m 0700 {home}/.ssh"));
            for key in &user.ssh_keys {
                commands.push(format!(
                    "echo '{key}' >> /target{home}/.ssh/authorized_keys"
                ));
            }
            commands.push(format!("in-target chmod 0600 {home}/.ssh/authorized_keys"));
            commands.push(format!("in-target chown -R {0}: {home}/.ssh", user.name));
        }
        if user.password.is_none() {
            commands.push(sudo_line(&user.name, "/target"));
        }
        (!commands.is_empty()).then(|| commands.join(" && "))
    }

    fn autoinstall(&self) -> Result<String, TemplateError> {
        let user = self.user.as_ref().ok_or(TemplateError::Value {
            what: "user",
            value: String::new(),
            expected: "Subiquity makes a user; one is",
        })?;
        let password = user.password.as_ref().map_or("!", PasswordHash::expose);
        let mut late: Vec<String> = Vec::new();
        if user.password.is_none() {
            late.push(sudo_line(&user.name, "/target"));
        }
        if let Some(hash) = &self.root {
            late.push(format!("usermod -R /target -p '{}' root", hash.expose()));
        }
        let mut answers = json!({
            "version": 1,
            "locale": self.locale,
            "keyboard": { "layout": self.keyboard },
            "timezone": self.timezone,
            "refresh-installer": { "update": false },
            "identity": {
                "hostname": self.hostname,
                "username": user.name,
                "realname": user.name,
                "password": password,
            },
            "ssh": {
                "install-server": true,
                "authorized-keys": user.ssh_keys,
                "allow-pw": user.password.is_some(),
            },
            "storage": {
                "layout": { "name": "direct", "match": { "path": format!("/dev/{}", self.disk) } },
            },
            "packages": self.packages,
            "shutdown": match self.end { End::Poweroff => "poweroff", End::Reboot => "reboot" },
            "late-commands": late,
        });
        if let Source::Url(url) = &self.source {
            let primary = json!([{ "arches": ["default"], "uri": url }]);
            answers["apt"] = json!({ "primary": primary, "fallback": "abort" });
        }
        print(&json!({ "autoinstall": answers }))
    }

    fn cloud_init(&self) -> Result<String, TemplateError> {
        let mut users: Vec<Value> = Vec::new();
        let mut passwords = false;
        if let Some(user) = &self.user {
            let mut entry = json!({
                "name": user.name,
                // Images of one family lack the other's group of administrators.
                "groups": ["adm"],
                "shell": "/bin/bash",
                "lock_passwd": user.password.is_none(),
            });
            if !user.ssh_keys.is_empty() {
                entry["ssh_authorized_keys"] = json!(user.ssh_keys);
            }
            match &user.password {
                Some(hash) => {
                    passwords = true;
                    entry["passwd"] = json!(hash.expose());
                    entry["sudo"] = json!("ALL=(ALL:ALL) ALL");
                }
                None => entry["sudo"] = json!("ALL=(ALL) NOPASSWD:ALL"),
            }
            users.push(entry);
        }
        if let Some(hash) = &self.root {
            passwords = true;
            users.push(
                json!({ "name": "root", "lock_passwd": false, "hashed_passwd": hash.expose() }),
            );
        }
        if let Source::Url(_) = self.source {
            return Err(TemplateError::Source {
                kind: Kind::CloudInit,
                expected: "an image has its sources",
            });
        }
        let mut data = json!({
            "hostname": self.hostname,
            "preserve_hostname": false,
            "users": users,
            "disable_root": self.root.is_none(),
            "ssh_pwauth": passwords,
            "locale": self.locale,
            "timezone": self.timezone,
            "keyboard": { "layout": self.keyboard },
        });
        if !self.packages.is_empty() {
            data["packages"] = json!(self.packages);
            data["package_update"] = json!(true);
        }
        print(&data)
    }
}

fn finish(lines: Vec<String>) -> String {
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

fn print(value: &Value) -> Result<String, TemplateError> {
    let error = |error: &dyn std::fmt::Display| TemplateError::Print(error.to_string());
    let value = serde_norway::to_value(value).map_err(|e| error(&e))?;
    hooks::print(&value).map_err(|e| error(&e))
}

fn sudo_line(user: &str, root: &str) -> String {
    format!(
        "mkdir -p {root}/etc/sudoers.d && echo '{user} ALL=(ALL) NOPASSWD:ALL' > \
         {root}/etc/sudoers.d/90-{user} && chmod 0440 {root}/etc/sudoers.d/90-{user}"
    )
}

/// Server and folder of an HTTP mirror.
fn mirror(url: &str) -> Option<(&str, &str)> {
    let rest = url.strip_prefix("http://")?;
    let slash = rest.find('/')?;
    Some(rest.split_at(slash))
}
