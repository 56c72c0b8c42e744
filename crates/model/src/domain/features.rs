//! `<features>`, `<clock>` and `<pm>`.

use crate::error::{Error, NoteKind};
use crate::xml::{OnOff, Reader, Value, YesNo, element, values};

element! {
    /// `<features>` of a domain.
    pub struct Features {
        /// Power button, tables and shutdown by ACPI.
        acpi: bool = flag("acpi"),
        /// Local interrupt controllers.
        apic: Option<Apic> = child("apic"),
        /// Physical addresses over 32 bits; always there.
        pae: bool = flag("pae"),
    }
    known {
        "hap" => Inert("hardware paging is used wherever the host has it"),
        "viridian" => Inert("no Hyper-V interface is shown; the guest runs without"),
        "privnet" => Inert("belongs to containers"),
        "hyperv" => Inert("no Hyper-V interface is shown; Windows guests run without its speed-ups"),
        "kvm" => Inert("the guest sees KVM's own interface as it is"),
        "xen" => Inert("there is no Xen"),
        "pvspinlock" => Inert("KVM decides"),
        "capabilities" => Inert("belongs to containers"),
        "pmu" => Inert("the guest sees no performance counters"),
        "vmport" => Inert("there is no VMware port"),
        "gic" => Refused("a GIC is a part of ARM machines"),
        "smm" => Inert("the machine has no system management mode"),
        "ioapic" => Inert("the interrupt controllers are KVM's"),
        "hpt" => Refused("a hash page table is a part of POWER machines"),
        "vmcoreinfo" => Inert("no device takes the guest's crash information"),
        "htm" => Refused("a feature of POWER machines"),
        "nested-hv" => Refused("a feature of POWER machines"),
        "msrs" => Inert("unknown registers fault, as on a real machine"),
        "ccf-assist" => Refused("a feature of POWER machines"),
        "cfpc" => Refused("a feature of POWER machines"),
        "sbbc" => Refused("a feature of POWER machines"),
        "ibs" => Refused("a feature of POWER machines"),
        "tcg" => Inert("nothing is emulated in software"),
        "async-teardown" => Inert("memory is given back by the kernel"),
    }
}

element! {
    /// `<apic>`.
    pub struct Apic {
        /// Paravirtual end of interrupt.
        eoi: Option<OnOff> = attribute("eoi"),
    }
}

values! {
    /// What the guest's clock starts from.
    pub enum ClockOffset {
        /// UTC.
        #[default]
        Utc = "utc",
        /// The host's local time.
        Localtime = "localtime",
        /// A time zone's time.
        Timezone = "timezone",
        /// A distance from the basis, which follows what the guest sets.
        Variable = "variable",
        /// A given time at each start.
        Absolute = "absolute",
    }
}

values! {
    /// What a variable clock is a distance from.
    pub enum ClockBasis {
        /// UTC.
        #[default]
        Utc = "utc",
        /// The host's local time.
        Localtime = "localtime",
    }
}

/// A distance in seconds, or the wish that one be forgotten at each start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClockAdjustment {
    /// What the guest sets is forgotten.
    #[default]
    Reset,
    /// Seconds after the basis.
    Seconds(i64),
}

impl Value for ClockAdjustment {
    fn parse(text: &str) -> Result<Self, String> {
        if text == "reset" {
            return Ok(Self::Reset);
        }
        text.parse()
            .map(Self::Seconds)
            .map_err(|_| "a number of seconds, or 'reset', is expected".to_owned())
    }

    fn print(&self) -> String {
        match self {
            Self::Reset => "reset".to_owned(),
            Self::Seconds(seconds) => seconds.to_string(),
        }
    }
}

element! {
    /// `<clock>`.
    pub struct Clock {
        /// What it starts from.
        offset: ClockOffset = attribute_or_default("offset"),
        /// Distance.
        adjustment: Option<ClockAdjustment> = attribute("adjustment"),
        /// What `adjustment` is a distance from.
        basis: Option<ClockBasis> = attribute("basis"),
        /// Time zone, by name.
        timezone: Option<String> = attribute("timezone"),
        /// Seconds since 1970 to start from.
        start: Option<u64> = attribute("start"),
        /// Timers of the machine.
        timers: Vec<Timer> = child("timer"),
    }
    check Clock::check;
}

element! {
    /// `<timer>`.
    pub struct Timer {
        /// `rtc`, `pit`, `hpet`, `tsc`, `kvmclock`, `hypervclock`, `platform`, `armvtimer`.
        name: String = attribute("name"),
        /// Whether the machine has it.
        present: Option<YesNo> = attribute("present"),
        /// What is done about lost ticks: `delay`, `catchup`, `merge`, `discard`.
        tick_policy: Option<String> = attribute("tickpolicy"),
        /// What it follows.
        track: Option<String> = attribute("track"),
        /// Frequency in Hz.
        frequency: Option<u64> = attribute("frequency"),
        /// How the guest reads it.
        mode: Option<String> = attribute("mode"),
    }
    known {
        "catchup" => Inert("KVM decides how fast lost ticks are made up for"),
    }
    check Timer::check;
}

impl Timer {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        let wants = self.present != Some(YesNo::No);
        match (self.name.as_str(), wants) {
            ("hpet" | "hypervclock" | "armvtimer", true) => {
                reader.note(NoteKind::Inert, "", "the machine has no such timer")
            }
            ("rtc" | "pit" | "kvmclock" | "tsc", false) => {
                reader.note(NoteKind::Inert, "", "the machine always has this timer")
            }
            ("rtc" | "pit" | "tsc" | "kvmclock" | "platform", true) => {
                if self.frequency.is_some() || self.mode.is_some() || self.track.is_some() {
                    reader.note(NoteKind::Inert, "", "the timer follows the host's")?;
                }
                Ok(())
            }
            ("hpet" | "hypervclock" | "armvtimer" | "platform", false) => Ok(()),
            (other, _) => Err(reader.invalid(
                "@name",
                other,
                "one of rtc, pit, hpet, tsc, kvmclock, hypervclock, platform, armvtimer is \
                 expected",
            )),
        }
    }
}

impl Clock {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        match self.offset {
            ClockOffset::Timezone if self.timezone.is_none() => {
                Err(reader.missing("attribute 'timezone'"))
            }
            ClockOffset::Absolute if self.start.is_none() => {
                Err(reader.missing("attribute 'start'"))
            }
            _ => Ok(()),
        }
    }
}

element! {
    /// `<pm>`.
    pub struct PowerManagement {
        /// Sleep to memory (S3).
        suspend_to_mem: Option<SleepState> = child("suspend-to-mem"),
        /// Sleep to disk (S4).
        suspend_to_disk: Option<SleepState> = child("suspend-to-disk"),
    }
    check PowerManagement::check;
}

element! {
    /// A sleep state.
    pub struct SleepState {
        /// Whether the firmware offers it.
        enabled: Option<YesNo> = attribute("enabled"),
    }
}

impl PowerManagement {
    fn check(&mut self, reader: &mut Reader<'_>) -> Result<(), Error> {
        for (step, state) in [
            ("suspend-to-mem", &self.suspend_to_mem),
            ("suspend-to-disk", &self.suspend_to_disk),
        ] {
            if state
                .as_ref()
                .is_some_and(|s| s.enabled == Some(YesNo::Yes))
            {
                reader.note(NoteKind::Inert, step, "the machine offers no sleep states")?;
            }
        }
        Ok(())
    }
}
