// SPDX-License-Identifier: Apache-2.0

//! A front end of vhost-user on the crates of rust-vmm. It hands the memory of a guest of
//! Xen, in which `netbackd-lab virtio guest` has a driver, over to a back end. The crates
//! encode all messages, and map the memory that is mapped in advance, so they are a second
//! opinion on both.
//!
//!     rust-front SOCKET FLAGS DOMID LAYOUT
//!
//! FLAGS are those of the regions. With 0 it shares memory of its own and only starts rings.
//! With 0xa the rings are mapped in advance and all else is not, as by xen-vhost-frontend.
//! Flags that the crates do not know are put into the table as they are. LAYOUT is what
//! `netbackd-lab virtio layout` prints. At the end of its input the program stops the rings.

use std::fs::{read_to_string, File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRange, MmapRegion, MmapXenFlags};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PROTOCOL_FEATURES: u64 = 1 << 30;
const ACCESS_PLATFORM: u64 = 1 << 33;
const FOREIGN: u32 = 1;
const GRANT: u32 = 2;
const NOT_IN_ADVANCE: u32 = 8;

/// Layout is where the guest has its rings and buffers.
#[derive(Default)]
struct Layout {
    features: u64,
    size: u16,
    areas: Vec<(u64, u64)>,
    rings: Vec<[u64; 3]>, // descriptors, available, used
    ports: Vec<u32>,
}

impl Layout {
    fn read(path: &str) -> Result<Self> {
        let mut l = Layout::default();
        for line in read_to_string(path)?.lines() {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or("");
            let v = words.map(number).collect::<Result<Vec<u64>>>()?;
            match (name, v.as_slice()) {
                ("features", [f]) => l.features = *f,
                ("size", [n]) => l.size = *n as u16,
                ("area", [addr, size]) => l.areas.push((*addr, *size)),
                ("ring", [desc, avail, used]) => l.rings.push([*desc, *avail, *used]),
                ("port", [p]) => l.ports.push(*p as u32),
                _ => return Err(format!("{path}: {line}").into()),
            }
        }
        Ok(l)
    }

    /// Makes a layout in shared memory, for flags 0.
    fn own() -> Self {
        let base = 0x1_0000_0000;
        Layout {
            features: 1 << 32 | 1 << 15 | 1 << 28,
            size: 128,
            areas: vec![(base, 0x10000)],
            rings: (0..2).map(|i| base + i * 0x8000).map(|a| [a, a + 0x1000, a + 0x2000]).collect(),
            ports: vec![],
        }
    }
}

/// Parses a decimal or hexadecimal number.
fn number(s: &str) -> Result<u64> {
    Ok(match s.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16)?,
        None => s.parse()?,
    })
}

/// Memory is a table of regions, and their mappings in this process.
struct Memory {
    table: Vec<VhostUserMemoryRegionInfo>,
    mapped: Vec<GuestRegionMmap<()>>,
    files: Vec<File>,
}

impl Memory {
    fn new(l: &Layout, flags: u32, domid: u32) -> Result<Self> {
        let mut m = Memory { table: vec![], mapped: vec![], files: vec![] };
        for (i, (addr, size)) in l.areas.iter().enumerate() {
            let own = if flags == GRANT | NOT_IN_ADVANCE && i == 0 { GRANT } else { flags };
            let file = device(own, *size)?;
            if MmapXenFlags::from_bits(own).is_some_and(|f| f.is_valid()) {
                let offset = Some(FileOffset::new(file, 0));
                let range = match own {
                    0 => MmapRange::new_unix(*size as usize, offset, GuestAddress(*addr)),
                    _ => MmapRange::new(*size as usize, offset, GuestAddress(*addr), own, domid),
                };
                let region = GuestRegionMmap::new(MmapRegion::from_range(range)?, GuestAddress(*addr))?;
                m.table.push(VhostUserMemoryRegionInfo::from_guest_region(&region)?);
                m.mapped.push(region);
                continue;
            }
            m.table.push(VhostUserMemoryRegionInfo {
                guest_phys_addr: *addr,
                memory_size: *size,
                userspace_addr: *addr,
                mmap_offset: 0,
                mmap_handle: file.as_raw_fd(),
                xen_mmap_flags: own,
                xen_mmap_data: domid,
            });
            m.files.push(file);
        }
        Ok(m)
    }

    /// Returns what SET_VRING_ADDR has for a guest address.
    fn user(&self, guest: u64) -> Result<u64> {
        for r in &self.table {
            if guest.wrapping_sub(r.guest_phys_addr) < r.memory_size {
                return Ok(r.userspace_addr + (guest - r.guest_phys_addr));
            }
        }
        Err(format!("{guest:#x} is in no region").into())
    }
}

/// Opens the file of a region.
fn device(flags: u32, size: u64) -> Result<File> {
    if flags == 0 {
        // SAFETY: the name is a string with a NUL, and the descriptor is new.
        let file = unsafe {
            let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
            if fd < 0 {
                return Err(std::io::Error::last_os_error().into());
            }
            File::from_raw_fd(fd)
        };
        file.set_len(size)?;
        return Ok(file);
    }
    let path = if flags & FOREIGN != 0 { "/dev/xen/privcmd" } else { "/dev/xen/gntdev" };
    let file = OpenOptions::new().read(true).write(true).open(path);
    Ok(file.map_err(|e| format!("{path}: {e}"))?)
}

/// Events are the event channels of the guest.
struct Events {
    device: File,
    ports: Vec<u32>, // local ones, by ring
}

impl Events {
    fn bind(domid: u32, remote: &[u32]) -> Result<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/xen/evtchn")?;
        let mut ports = vec![];
        for port in remote {
            ports.push(ioctl(&device, 0x0008_4501, &[domid, *port])?); // IOCTL_EVTCHN_BIND_INTERDOMAIN
        }
        Ok(Events { device, ports })
    }

    fn notify(&self, ring: usize) -> Result<()> {
        ioctl(&self.device, 0x0004_4504, &[self.ports[ring]])?; // IOCTL_EVTCHN_NOTIFY
        Ok(())
    }

    /// Takes the events that there are and returns their rings.
    fn take(&self) -> Result<Vec<usize>> {
        let mut ports = [0u32; 8];
        // SAFETY: the kernel writes at most the bytes of the array, and reads those it wrote.
        let n = unsafe {
            let n = libc::read(self.device.as_raw_fd(), ports.as_mut_ptr().cast(), std::mem::size_of_val(&ports));
            if n < 0 || libc::write(self.device.as_raw_fd(), ports.as_ptr().cast(), n as usize) != n {
                return Err(std::io::Error::last_os_error().into());
            }
            n as usize / 4
        };
        Ok(ports[..n].iter().filter_map(|p| self.ports.iter().position(|q| p == q)).collect())
    }
}

fn ioctl(file: &File, request: u64, words: &[u32]) -> Result<u32> {
    // SAFETY: the request's argument is as many words, which the kernel only reads.
    let n = unsafe { libc::ioctl(file.as_raw_fd(), request as _, words.as_ptr()) };
    if n < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(n as u32)
}

/// Waits until one of the descriptors is readable and returns which are.
fn wait(fds: &[RawFd]) -> Result<Vec<bool>> {
    let mut p: Vec<libc::pollfd> = fds.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: the array has as many entries as it says.
    if unsafe { libc::poll(p.as_mut_ptr(), p.len() as _, -1) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(p.iter().map(|p| p.revents != 0).collect())
}

/// Negotiates, in the order of the crate's own back end tests: features before protocol
/// features.
fn negotiate(front: &mut Frontend, wanted: u64) -> Result<()> {
    front.set_owner()?;
    let offered = front.get_features()?;
    if wanted & !offered & !ACCESS_PLATFORM != 0 {
        return Err(format!("features {wanted:#x} are wanted, {offered:#x} offered").into());
    }
    front.set_features(wanted & offered | PROTOCOL_FEATURES)?;
    let offered = front.get_protocol_features()?;
    let wanted = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::XEN_MMAP;
    if !offered.contains(wanted) {
        return Err(format!("protocol features {offered:?}, want {wanted:?}").into());
    }
    front.set_protocol_features(wanted)?;
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    if args.len() != 5 {
        return Err("usage: rust-front SOCKET FLAGS DOMID LAYOUT".into());
    }
    let (flags, domid) = (number(&args[2])? as u32, number(&args[3])? as u32);
    let mut layout = if flags == 0 { Layout::own() } else { Layout::read(&args[4])? };
    if flags & GRANT != 0 {
        layout.features |= ACCESS_PLATFORM;
    }
    let memory = Memory::new(&layout, flags, domid)?;
    let mut front = Frontend::connect(&args[1], 2)?;
    negotiate(&mut front, layout.features)?;
    front.set_mem_table(&memory.table).map_err(|e| format!("refused: {e}"))?;
    println!("accepted: {} regions with flags {flags:#x}", memory.table.len());

    let events = if layout.ports.is_empty() { None } else { Some(Events::bind(domid, &layout.ports)?) };
    let mut kicks = vec![];
    let mut calls = vec![];
    for (i, ring) in layout.rings.iter().enumerate() {
        let (kick, call) = (EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?);
        front.set_vring_num(i, layout.size)?;
        front.set_vring_addr(i, &VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            desc_table_addr: memory.user(ring[0])?,
            avail_ring_addr: memory.user(ring[1])?,
            used_ring_addr: memory.user(ring[2])?,
            flags: 0,
            log_addr: None,
        })?;
        front.set_vring_base(i, 0)?;
        front.set_vring_call(i, &call)?;
        front.set_vring_kick(i, &kick)?;
        front.set_vring_enable(i, true)?;
        kicks.push(kick);
        calls.push(call);
    }
    println!("started: {} rings", kicks.len());

    let nothing = EventFd::new(EFD_NONBLOCK)?;
    let channel = events.as_ref().map_or(nothing.as_raw_fd(), |e| e.device.as_raw_fd());
    loop {
        let ready = wait(&[0, channel, calls[0].as_raw_fd(), calls[1].as_raw_fd()])?;
        if ready[0] {
            break;
        }
        let Some(events) = &events else { continue };
        if ready[1] {
            for ring in events.take()? {
                kicks[ring].write(1)?;
            }
        }
        for (i, call) in calls.iter().enumerate() {
            if ready[2 + i] && call.read().is_ok() {
                events.notify(i)?;
            }
        }
    }
    for i in 0..kicks.len() {
        println!("ring {i} stopped at {}", front.get_vring_base(i)?);
    }
    Ok(())
}
