//! What the guest's processors say about themselves: the host's features, less the masked ones.
//!
//! *Intel SDM* volume 2A, CPUID; *AMD APM* volume 3, appendix E.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

/// A register of CPUID's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuidRegister {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Bits that a guest is not to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidMask {
    /// The leaf (EAX of the question).
    pub leaf: u32,
    /// The sub-leaf (ECX of the question).
    #[serde(default)]
    pub subleaf: u32,
    /// The register of the answer.
    pub register: CpuidRegister,
    /// The bits to clear.
    pub clear: u32,
}

const FEATURES: u32 = 1;
const CACHE: u32 = 4;
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
const AMD_SIZES: u32 = 0x8000_0008;
const AMD_CACHE: u32 = 0x8000_001d;
const AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;

/// The host's supported features with the machine's changes, for all vCPUs alike.
pub(super) fn supported(kvm: &Kvm, masks: &[CpuidMask]) -> Result<CpuId, kvm_ioctls::Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        if entry.function == FEATURES {
            entry.ecx |= ECX_HYPERVISOR;
            if deadline {
                entry.ecx |= ECX_TSC_DEADLINE;
            }
        }
        for mask in masks {
            mask.apply(entry);
        }
    }
    Ok(cpuid)
}

impl CpuidMask {
    fn apply(&self, entry: &mut kvm_cpuid_entry2) {
        let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        if entry.function != self.leaf || (indexed && entry.index != self.subleaf) {
            return;
        }
        let register = match self.register {
            CpuidRegister::Eax => &mut entry.eax,
            CpuidRegister::Ebx => &mut entry.ebx,
            CpuidRegister::Ecx => &mut entry.ecx,
            CpuidRegister::Edx => &mut entry.edx,
        };
        *register &= !self.clear;
    }
}

/// The answers of vCPU `id` of `count`: one package of as many cores, one thread each.
pub(super) fn for_vcpu(base: &CpuId, id: u8, count: u8) -> Result<CpuId, kvm_ioctls::Error> {
    let apic = u32::from(id);
    let cores = u32::from(count);
    // Bits of the APIC ID that number the cores of the package.
    let bits = u32::BITS - cores.saturating_sub(1).leading_zeros();
    let mut entries: Vec<_> = base
        .as_slice()
        .iter()
        .filter(|e| !matches!(e.function, TOPOLOGY | TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            FEATURES => {
                entry.ebx = entry.ebx & 0x0000_ffff | apic << 24 | cores << 16;
                entry.edx = entry.edx & !EDX_HTT | if cores > 1 { EDX_HTT } else { 0 };
            }
            CACHE if entry.eax & 0x1f != 0 => {
                // The last level is shared by the package, the others belong to a core.
                let sharing = if entry.eax >> 5 & 7 >= 3 {
                    cores - 1
                } else {
                    0
                };
                entry.eax = entry.eax & 0x3fff | (cores - 1).min(63) << 26 | sharing << 14;
            }
            AMD_SIZES => entry.ecx = entry.ecx & !0xf0ff | bits << 12 | (cores - 1),
            AMD_CACHE if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 {
                    cores - 1
                } else {
                    0
                };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
            }
            AMD_TOPOLOGY => {
                entry.eax = apic;
                entry.ebx = apic;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
    let has = |leaf| base.as_slice().iter().any(|e| e.function == leaf);
    for leaf in [TOPOLOGY, TOPOLOGY_V2]
        .into_iter()
        .filter(|leaf| has(*leaf))
    {
        entries.extend(topology(leaf, apic, bits, cores));
    }
    CpuId::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// The levels of the extended topology: threads, cores, and the end.
fn topology(leaf: u32, apic: u32, bits: u32, cores: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, kind: u32, shift, count| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        edx: apic,
        ..Default::default()
    };
    [
        level(0, 1, 0, 1),
        level(1, 2, bits, cores),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            flags: if index > 0 {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        }
    }

    #[test]
    fn each_vcpu_has_its_own_identity() {
        let base =
            CpuId::from_entries(&[entry(1, 0), entry(0xb, 1), entry(0x8000_0008, 0)]).unwrap();
        let cpuid = for_vcpu(&base, 5, 6).unwrap();
        let find = |f, i| {
            *cpuid
                .as_slice()
                .iter()
                .find(|e| e.function == f && e.index == i)
                .unwrap()
        };
        assert_eq!(find(1, 0).ebx >> 16, 0x0506);
        assert_eq!((find(0xb, 0).edx, find(0xb, 1).edx), (5, 5));
        assert_eq!(
            (find(0xb, 1).eax, find(0xb, 1).ebx, find(0xb, 1).ecx),
            (3, 6, 0x201)
        );
        assert_eq!(find(0xb, 2).ecx, 2);
        assert_eq!(find(0x8000_0008, 0).ecx & 0xf0ff, 0x3005);
        let alone = for_vcpu(&base, 0, 1).unwrap();
        assert_eq!(alone.as_slice()[0].edx & EDX_HTT, 0);
    }

    #[test]
    fn masks_clear_their_bits_only() {
        let mask = CpuidMask {
            leaf: 7,
            subleaf: 1,
            register: CpuidRegister::Ebx,
            clear: 0xf0,
        };
        let mut hit = entry(7, 1);
        mask.apply(&mut hit);
        assert_eq!((hit.ebx, hit.eax), (!0xf0, u32::MAX));
        let mut miss = entry(7, 2);
        mask.apply(&mut miss);
        assert_eq!(miss.ebx, u32::MAX);
    }
}
