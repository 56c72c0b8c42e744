//! Where distributions keep the kernel and initrd of their installers.

use std::path::Path;

use super::{MediaError, Tree, TreeInfo};

/// Which program installs: it decides what an answer file looks like and how it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Anaconda (Fedora, RHEL and relatives): kickstart.
    Anaconda,
    /// debian-installer (Debian, older Ubuntu): preseed.
    DebianInstaller,
    /// Subiquity (Ubuntu from 20.04): autoinstall.
    Subiquity,
    /// YaST (SUSE): AutoYaST, for which nothing is made here.
    Yast,
    /// A live system: nothing installs by itself.
    Live,
    /// Not known.
    Unknown,
}

/// How an installer was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// Its `.treeinfo` names it.
    TreeInfo,
    /// It is where its distribution has it.
    Layout,
    /// The user named it.
    Named,
}

/// What a tree says it installs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Product {
    /// Name as libosinfo has it: `debian`, `fedora`, `rhel`, `ubuntu`.
    pub distro: String,
    /// Version: `12`, `40`, `9.4`, `24.04`.
    pub version: Option<String>,
}

impl Product {
    /// The short id that libosinfo gives such a system: `debian12`, `ubuntu24.04`, `rhel9.4`.
    pub fn short_id(&self) -> String {
        let version = self.version.as_deref().unwrap_or("-unknown");
        let parts: Vec<&str> = version.split('.').collect();
        let kept = match (self.distro.as_str(), parts.as_slice()) {
            ("debian" | "fedora" | "almalinux" | "rocky" | "centos-stream" | "mageia", [a, ..]) => {
                (*a).to_owned()
            }
            (_, [a, b, ..]) => format!("{a}.{b}"),
            _ => version.to_owned(),
        };
        format!("{}{kept}", self.distro)
    }
}

/// An installer in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installer {
    /// Path of its kernel inside.
    pub kernel: String,
    /// Path of its initrd inside.
    pub initrd: String,
    /// Which program it is.
    pub family: Family,
    /// What it installs, if the tree says so.
    pub product: Option<Product>,
    /// How it was found.
    pub found: Found,
    /// What `.treeinfo` says, if there is one.
    pub treeinfo: Option<TreeInfo>,
}

impl Installer {
    pub(super) fn named(
        kernel: &str,
        initrd: &str,
        family: Family,
        product: Option<Product>,
    ) -> Self {
        Self {
            kernel: kernel.to_owned(),
            initrd: initrd.to_owned(),
            family,
            product,
            found: Found::Named,
            treeinfo: None,
        }
    }
}

/// Kernel and initrd of one layout. `family` is what such a layout means; the tree's own words
/// may say more.
struct Layout {
    family: Family,
    kernel: &'static str,
    initrd: &'static [&'static str],
}

const fn layout(family: Family, kernel: &'static str, initrd: &'static [&'static str]) -> Layout {
    Layout {
        family,
        kernel,
        initrd,
    }
}

/// In the order in which they are tried. A path that several distributions share comes with
/// the one that it belongs to in most cases.
#[rustfmt::skip]
const LAYOUTS: &[Layout] = {
    use Family::{Anaconda, DebianInstaller, Live, Subiquity, Yast};
    &[
        layout(Anaconda, "images/pxeboot/vmlinuz", &["images/pxeboot/initrd.img"]),
        layout(Subiquity, "casper/vmlinuz", &["casper/initrd", "casper/initrd.gz", "casper/initrd.lz"]),
        layout(Subiquity, "casper/hwe-vmlinuz", &["casper/hwe-initrd"]),
        layout(DebianInstaller, "install.amd/vmlinuz", &["install.amd/initrd.gz"]),
        layout(DebianInstaller, "install/vmlinuz", &["install/initrd.gz"]),
        layout(DebianInstaller, "install/hwe-netboot/ubuntu-installer/amd64/linux",
            &["install/hwe-netboot/ubuntu-installer/amd64/initrd.gz"]),
        layout(DebianInstaller, "install/netboot/ubuntu-installer/amd64/linux",
            &["install/netboot/ubuntu-installer/amd64/initrd.gz"]),
        // A mirror's tree, from its release's folder or from that of the images.
        layout(DebianInstaller, "main/installer-amd64/current/images/netboot/debian-installer/amd64/linux",
            &["main/installer-amd64/current/images/netboot/debian-installer/amd64/initrd.gz"]),
        layout(DebianInstaller, "main/installer-amd64/current/images/netboot/ubuntu-installer/amd64/linux",
            &["main/installer-amd64/current/images/netboot/ubuntu-installer/amd64/initrd.gz"]),
        layout(DebianInstaller, "main/installer-amd64/current/legacy-images/netboot/ubuntu-installer/amd64/linux",
            &["main/installer-amd64/current/legacy-images/netboot/ubuntu-installer/amd64/initrd.gz"]),
        layout(DebianInstaller, "current/images/netboot/debian-installer/amd64/linux",
            &["current/images/netboot/debian-installer/amd64/initrd.gz"]),
        layout(DebianInstaller, "netboot/debian-installer/amd64/linux",
            &["netboot/debian-installer/amd64/initrd.gz"]),
        layout(DebianInstaller, "debian-installer/amd64/linux", &["debian-installer/amd64/initrd.gz"]),
        layout(DebianInstaller, "ubuntu-installer/amd64/linux", &["ubuntu-installer/amd64/initrd.gz"]),
        layout(Yast, "boot/x86_64/loader/linux", &["boot/x86_64/loader/initrd"]),
        layout(Yast, "boot/x86_64/linux", &["boot/x86_64/initrd"]),
        layout(Anaconda, "isolinux/vmlinuz", &["isolinux/initrd.img"]),
        layout(Anaconda, "boot/x86_64/loader/linux", &["boot/x86_64/loader/initrd.img"]),
        layout(Live, "live/vmlinuz", &["live/initrd.img"]),
        layout(Live, "arch/boot/x86_64/vmlinuz-linux", &["arch/boot/x86_64/initramfs-linux.img"]),
        layout(Live, "boot/vmlinuz-lts", &["boot/initramfs-lts"]),
        layout(Live, "boot/vmlinuz-virt", &["boot/initramfs-virt"]),
        layout(Family::Unknown, "isolinux/x86_64/vmlinuz", &["isolinux/x86_64/all.rdz"]),
        layout(Family::Unknown, "boot/vmlinuz", &["boot/initrd", "boot/initrd.img", "boot/initrd.gz"]),
        layout(Family::Unknown, "vmlinuz", &["initrd.img", "initrd.gz", "initrd"]),
        layout(Family::Unknown, "linux", &["initrd.gz"]),
    ]
};

/// Finds the installer for x86_64 in a tree: what the user names, else what `.treeinfo` names,
/// else what is in a distribution's usual place.
///
/// # Errors
/// [`MediaError::NoInstaller`] with all that was looked for, and what reading says.
pub fn detect(
    tree: &Tree,
    named: Option<&(String, String)>,
    path: &Path,
) -> Result<Installer, MediaError> {
    let treeinfo = match tree.text(".treeinfo")? {
        Some(text) => Some(text),
        None => tree.text("treeinfo")?,
    };
    let treeinfo = treeinfo.as_deref().map(TreeInfo::parse);
    let product = product(tree, treeinfo.as_ref())?;
    let mut looked_for = Vec::new();
    let mut found = None;
    if let Some((kernel, initrd)) = named {
        let family = family_of(Family::Unknown, treeinfo.as_ref(), product.as_ref());
        found = Some(Installer::named(kernel, initrd, family, product.clone()));
    }
    if let Some((kernel, initrd)) = treeinfo.as_ref().and_then(|info| info.boot("x86_64")) {
        looked_for.push(format!("{kernel} and {initrd} (.treeinfo)"));
        if found.is_none() && tree.find(&kernel)?.is_some() && tree.find(&initrd)?.is_some() {
            found = Some(Installer {
                found: Found::TreeInfo,
                ..Installer::named(&kernel, &initrd, Family::Anaconda, product.clone())
            });
        }
    }
    if found.is_none() {
        found = in_usual_places(tree, &mut looked_for)?;
    }
    let Some(mut installer) = found else {
        return Err(MediaError::NoInstaller {
            path: path.to_owned(),
            looked_for,
        });
    };
    installer.family = family_of(installer.family, treeinfo.as_ref(), product.as_ref());
    installer.product = product;
    installer.treeinfo = treeinfo;
    Ok(installer)
}

fn in_usual_places(
    tree: &Tree,
    looked_for: &mut Vec<String>,
) -> Result<Option<Installer>, MediaError> {
    for layout in LAYOUTS {
        looked_for.push(format!(
            "{} and {}",
            layout.kernel,
            layout.initrd.join(" or ")
        ));
        if tree.find(layout.kernel)?.is_none() {
            continue;
        }
        for initrd in layout.initrd {
            if tree.find(initrd)?.is_some() {
                return Ok(Some(Installer {
                    found: Found::Layout,
                    ..Installer::named(layout.kernel, initrd, layout.family, None)
                }));
            }
        }
    }
    Ok(None)
}

/// What a tree's own words make of a layout's family.
fn family_of(layout: Family, treeinfo: Option<&TreeInfo>, product: Option<&Product>) -> Family {
    let distro = product.map(|product| product.distro.as_str());
    match (layout, distro) {
        (_, Some("opensuse" | "sle")) => Family::Yast,
        (Family::Unknown, Some("debian")) => Family::DebianInstaller,
        (Family::Unknown, Some("ubuntu")) => Family::Subiquity,
        (Family::Unknown, _) if treeinfo.is_some() => Family::Anaconda,
        (family, _) => family,
    }
}

/// What the tree says it installs.
fn product(tree: &Tree, treeinfo: Option<&TreeInfo>) -> Result<Option<Product>, MediaError> {
    if let Some(family) = treeinfo.and_then(TreeInfo::family)
        && let Some(distro) = distro(family)
    {
        let version = treeinfo.and_then(TreeInfo::version).map(str::to_owned);
        return Ok(Some(Product {
            distro: stream(distro, version.as_deref()).to_owned(),
            version,
        }));
    }
    if let Some(info) = tree.text(".disk/info")?
        && let Some(product) = sentence(&info)
    {
        return Ok(Some(product));
    }
    let label = tree.image().map(|image| image.label().to_owned());
    Ok(label.as_deref().and_then(sentence))
}

/// Reads texts such as `Debian GNU/Linux 12.5.0 "Bookworm" - Official amd64 NETINST` and
/// labels such as `Fedora-S-dvd-x86_64-40`.
fn sentence(text: &str) -> Option<Product> {
    let distro = distro(text)?;
    let words = text.split([' ', '-', '_', '/']);
    let version = words.map(str::trim).find(|word| {
        let bytes = word.as_bytes();
        // An architecture such as 64 of x86_64 is no version; years and dates are none either.
        !matches!(*word, "64" | "86")
            && bytes.first().is_some_and(u8::is_ascii_digit)
            && bytes.iter().all(|b| b.is_ascii_digit() || *b == b'.')
            && word.split('.').next().is_some_and(|major| major.len() < 4)
    });
    Some(Product {
        distro: distro.to_owned(),
        version: version.map(|version| version.trim_end_matches('.').to_owned()),
    })
}

/// CentOS Linux ended with 8; what has no minor number after is the stream.
fn stream<'a>(distro: &'a str, version: Option<&str>) -> &'a str {
    let rolling = version.is_some_and(|v| !v.contains('.') && !matches!(v, "5" | "6" | "7"));
    match distro {
        "centos" if rolling => "centos-stream",
        other => other,
    }
}

fn distro(text: &str) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 14] = [
        ("fedora", "fedora"),
        ("centos stream", "centos-stream"),
        ("centos-stream", "centos-stream"),
        ("centos", "centos"),
        ("red hat enterprise linux", "rhel"),
        ("rhel", "rhel"),
        ("almalinux", "almalinux"),
        ("rocky", "rocky"),
        ("oracle", "ol"),
        ("ubuntu", "ubuntu"),
        ("debian", "debian"),
        ("opensuse", "opensuse"),
        ("suse linux enterprise", "sle"),
        ("mageia", "mageia"),
    ];
    let text = text.to_ascii_lowercase();
    KNOWN
        .into_iter()
        .find(|(word, _)| text.contains(word))
        .map(|(_, distro)| distro)
}
