// SPDX-License-Identifier: GPL-2.0

//! The memfd that is a guest's RAM: of how many bytes, in pages of which size.

use crate::{
    options,
    Outcome, //
};
use nix::sys::memfd::{
    memfd_create,
    MFdFlags, //
};
use std::{
    fs::{
        self,
        File, //
    },
    path::Path, //
};

/// Where the kernel has a directory for each size of HugeTLB pages.
const POOLS: &str = "/sys/kernel/mm/hugepages";

/// What a guest's RAM is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// In bytes.
    pub size: u64,
    /// The size of its HugeTLB pages in bytes; [`None`] for ordinary memory.
    huge: Option<u64>,
}

impl Ram {
    /// RAM of `size` bytes, in pages of the size that an operator named. The error is for him.
    pub fn new(size: u64, huge: Option<&str>) -> Result<Self, String> {
        let huge = huge.map(|text| {
            options::size(text)
                .filter(|bytes| bytes.is_power_of_two())
                .ok_or_else(|| format!("`{text}' is no size of huge pages: say 2M, or 1G"))
        });
        let huge = huge.transpose()?;

        match huge {
            Some(page) if size % page != 0 => Err(format!(
                "RAM of {size} bytes is not made of huge pages of {page} bytes"
            )),
            _ => Ok(Self { size, huge }),
        }
    }

    /// Makes it. The pages of the pool are reserved when QEMU maps it.
    pub fn make(self, name: &str) -> Outcome<File> {
        let mut flags = MFdFlags::MFD_CLOEXEC;
        if let Some(page) = self.huge {
            expect_room(Path::new(POOLS), page, self.size / page)?;
            let size = page.ilog2() << libc::MFD_HUGE_SHIFT;
            flags |= MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(size);
        }
        let ram = File::from(memfd_create(
            format!("luo-qemu:{name}:ram").as_str(),
            flags,
        )?);

        ram.set_len(self.size)?;
        Ok(ram)
    }
}

/// Says what to do if there are too few pages: QEMU's error does not.
fn expect_room(pools: &Path, page: u64, wanted: u64) -> Outcome {
    let pool = pools.join(format!("hugepages-{}kB", page >> 10));
    if !pool.is_dir() {
        return Err(format!("this machine has no huge pages of {} KiB", page >> 10).into());
    }
    let number =
        |name: &str| -> Outcome<u64> { Ok(fs::read_to_string(pool.join(name))?.trim().parse()?) };
    let room = number("free_hugepages")?
        .saturating_sub(number("resv_hugepages")?)
        // What the pool may grow by.
        .saturating_add(
            number("nr_overcommit_hugepages")?.saturating_sub(number("surplus_hugepages")?),
        );

    if room < wanted {
        return Err(format!(
            "{wanted} huge pages of {} KiB are needed, {room} are free: write more to {}",
            page >> 10,
            pool.join("nr_hugepages").display()
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let ram = |size, huge| Ram::new(size, huge).map(|ram| ram.huge);

        assert_eq!(ram(4096, None), Ok(None));
        assert_eq!(ram(4 << 20, Some("2M")), Ok(Some(2 << 20)));
        assert_eq!(ram(1 << 30, Some("1G")), Ok(Some(1 << 30)));
        assert!(ram(3 << 20, Some("2M")).is_err());
        assert!(ram(6 << 20, Some("3M")).is_err());
        assert!(ram(4 << 20, Some("many")).is_err());
    }

    #[test]
    fn room_in_the_pool() {
        let pools = tempfile::tempdir().unwrap();
        let pool = pools.path().join("hugepages-2048kB");
        let put =
            |name: &str, number: u64| fs::write(pool.join(name), format!("{number}\n")).unwrap();
        fs::create_dir(&pool).unwrap();
        put("free_hugepages", 10);
        put("resv_hugepages", 3);
        put("nr_overcommit_hugepages", 2);
        put("surplus_hugepages", 1);

        let room = |wanted| expect_room(pools.path(), 2 << 20, wanted);
        assert!(room(8).is_ok());
        let why = room(9).unwrap_err().to_string();
        assert!(
            why.contains("8 are free") && why.contains("nr_hugepages"),
            "{why}"
        );
        assert!(expect_room(pools.path(), 1 << 30, 1).is_err());
    }
}
