//! What a guest that boots from the network is given: a script for iPXE, a configuration for
//! PXELINUX, and what both load.

use super::plan::{MAX_COMMAND_LINE, PlanError};

/// What the network boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// Address of the kernel, or its path on the TFTP server.
    pub kernel: String,
    /// Address of the initrd, or its path.
    pub initrd: String,
    /// Command line.
    pub command_line: String,
}

impl Boot {
    fn check(&self) -> Result<(), PlanError> {
        let texts = [&self.kernel, &self.initrd, &self.command_line];
        if texts.iter().any(|text| text.contains(char::is_control)) {
            return Err(PlanError::CommandLine("has a control character"));
        }
        if texts[..2]
            .iter()
            .any(|text| text.contains(char::is_whitespace))
        {
            return Err(PlanError::CommandLine("has an address with a blank"));
        }
        if self.command_line.len() + self.initrd.len() + 10 > MAX_COMMAND_LINE {
            return Err(PlanError::CommandLine("has over 2047 bytes"));
        }
        Ok(())
    }

    /// A script for iPXE, which firmware's own network boot is replaced by. Where loading
    /// fails the machine powers off, so that the install ends rather than tries for ever.
    ///
    /// # Errors
    /// [`PlanError::CommandLine`] for a line that iPXE would read in another way.
    pub fn ipxe_script(&self) -> Result<String, PlanError> {
        self.check()?;
        let texts = [&self.kernel, &self.initrd, &self.command_line];
        if texts
            .iter()
            .any(|text| text.contains("${") || text.contains(['&', '|', '#', '\\', '"', '\'']))
        {
            return Err(PlanError::CommandLine(
                "has one of & | # \\ \" ' or ${, which iPXE reads as its own",
            ));
        }
        Ok(format!(
            "#!ipxe\n\
             kernel {} initrd=initrd {} || goto failed\n\
             initrd --name initrd {} || goto failed\n\
             boot || goto failed\n\
             :failed\n\
             echo CENOTE-INSTALL network boot failed\n\
             poweroff\n",
            self.kernel, self.command_line, self.initrd
        ))
    }

    /// A file `pxelinux.cfg/default`, which boots at once.
    ///
    /// # Errors
    /// [`PlanError::CommandLine`].
    pub fn pxelinux_config(&self) -> Result<String, PlanError> {
        self.check()?;
        Ok(format!(
            "DEFAULT install\nPROMPT 0\nTIMEOUT 0\n\nLABEL install\n  KERNEL {}\n  INITRD {}\n  \
             APPEND {}\n",
            self.kernel, self.initrd, self.command_line
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn boot(command_line: &str) -> Boot {
        Boot {
            kernel: "http://10.0.2.2/i/t/linux".into(),
            initrd: "http://10.0.2.2/i/t/initrd".into(),
            command_line: command_line.into(),
        }
    }

    #[test]
    fn scripts_have_the_command_line_as_it_is() {
        let line = "auto=true url=http://h/p.cfg --- console=ttyS0";
        let script = boot(line).ipxe_script().unwrap();
        assert!(
            script.starts_with("#!ipxe\n") && script.contains(line),
            "{script}"
        );
        let config = boot(line).pxelinux_config().unwrap();
        assert!(config.contains(&format!("APPEND {line}\n")), "{config}");
    }

    #[test]
    fn lines_that_would_be_read_in_another_way_are_refused() {
        for line in [
            "a\nboot",
            "a ${net0/ip}",
            "a || shell",
            "x=\"a b\"",
            &"x".repeat(2048),
        ] {
            assert!(boot(line).ipxe_script().is_err(), "{line}");
        }
        assert!(boot("a\nLABEL x").pxelinux_config().is_err());
        let blank = Boot {
            kernel: "a b".into(),
            ..boot("x")
        };
        assert!(blank.pxelinux_config().is_err());
    }
}
