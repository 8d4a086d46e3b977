// What exits cost by ioctl alone: kvm_exits KIND GUEST.
//
// GUEST is an ELF file whose PT_LOAD segment is 32-bit code, entered at e_entry in protected mode with flat segments,
// paging off. KIND is what it does: "port" or "mmio" (so many of them as IN from port 0x5f0 says, then OUT to 0x5f4),
// "halt" (halts for good, and OUT to 0x5f4 in the handler of vector 0x40), "kick" (a loop without end).
//
// Reads lines with a number of events, and answers each with the nanoseconds that these events took.
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { COUNT = 0x5f0, DONE = 0x5f4, VECTOR = 0x40, MEMORY = 4 << 20 };
// Between events of another thread: the guest halts, or runs, by then.
static const struct timespec pause_between = { .tv_nsec = 200000 };

static int vm, vcpu;
static struct kvm_run *run;
static int told[2];
static atomic_int asked;
static pthread_t runner;

static int check(int result, const char *what)
{
    if (result < 0)
        err(1, "%s", what);
    return result;
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static uint32_t load(unsigned char *memory, const char *path)
{
    static unsigned char file[1 << 20];
    int fd = check(open(path, O_RDONLY), path);
    ssize_t length = check(read(fd, file, sizeof file), path);
    Elf64_Ehdr *header = (void *)file;
    for (int n = 0; n < header->e_phnum; n++) {
        Elf64_Phdr *segment = (void *)(file + header->e_phoff + n * sizeof *segment);
        if (segment->p_type != PT_LOAD)
            continue;
        if (segment->p_offset + segment->p_filesz > (size_t)length || segment->p_paddr + segment->p_memsz > MEMORY)
            errx(1, "%s: a segment out of bounds", path);
        memcpy(memory + segment->p_paddr, file + segment->p_offset, segment->p_filesz);
    }
    close(fd);
    return header->e_entry;
}

static void flat(struct kvm_segment *segment, int type)
{
    *segment = (struct kvm_segment){ .limit = 0xffffffff, .selector = type & 8 ? 8 : 16, .type = type,
                                     .present = 1, .db = 1, .s = 1, .g = 1 };
}

static void make(const char *guest)
{
    int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    // As our machine has it: only the local APIC is the kernel's.
    struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
    check(ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");
    unsigned char *memory = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        err(1, "mmap");
    struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (uintptr_t)memory };
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        err(1, "mmap of the vCPU");

    struct kvm_cpuid2 *cpuid = calloc(1, sizeof *cpuid + 256 * sizeof *cpuid->entries);
    cpuid->nent = 256;
    check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "KVM_GET_SUPPORTED_CPUID");
    check(ioctl(vcpu, KVM_SET_CPUID2, cpuid), "KVM_SET_CPUID2");
    struct kvm_sregs sregs;
    check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    flat(&sregs.cs, 0xb);
    flat(&sregs.ds, 0x3);
    sregs.es = sregs.fs = sregs.gs = sregs.ss = sregs.ds;
    sregs.cr0 |= 1;
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = { .rip = load(memory, guest), .rflags = 2 };
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void tell(void)
{
    if (write(told[1], "", 1) != 1)
        err(1, "write");
}

static void wait_told(void)
{
    char byte;
    if (read(told[0], &byte, 1) != 1)
        err(1, "read");
}

static void *data(void)
{
    return (char *)run + run->io.data_offset;
}

// One entry. The port of an OUT, 0 for what has been dealt with, -1 if a signal ended it.
static int enter(uint32_t count)
{
    if (ioctl(vcpu, KVM_RUN, 0) < 0) {
        if (errno != EINTR)
            err(1, "KVM_RUN");
        return -1;
    }
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        if (run->io.direction == KVM_EXIT_IO_OUT)
            return run->io.port;
        memcpy(data(), &count, run->io.size);
        return 0;
    case KVM_EXIT_MMIO:
        return 0;
    default:
        errx(1, "exit reason %u", run->exit_reason);
    }
}

// "port" and "mmio": on this thread.
static uint64_t batch(uint32_t events)
{
    uint64_t start = now();
    while (enter(events) != DONE)
        ;
    return now() - start;
}

static void *halting(void *unused)
{
    for (;;)
        if (enter(0) == DONE)
            tell();
    return unused;
}

static void *kicked(void *unused)
{
    for (;;) {
        // In this order: a kick that comes after the look makes KVM_RUN return at once. A signal that comes after its
        // kick was noticed is nobody's.
        run->immediate_exit = 0;
        if (atomic_exchange(&asked, 0))
            tell();
        else
            while (enter(0) >= 0)
                ;
    }
    return unused;
}

static void wake(void)
{
    struct kvm_msi msi = { .address_lo = 0xfee00000, .data = VECTOR };
    check(ioctl(vm, KVM_SIGNAL_MSI, &msi), "KVM_SIGNAL_MSI");
}

static void kick(void)
{
    asked = 1;
    run->immediate_exit = 1;
    pthread_kill(runner, SIGUSR1);
}

// "halt" and "kick": from this thread to the vCPU's.
static uint64_t from_here(uint32_t events, void (*event)(void))
{
    uint64_t sum = 0;
    while (events--) {
        nanosleep(&pause_between, 0);
        uint64_t start = now();
        event();
        wait_told();
        sum += now() - start;
    }
    return sum;
}

static void nothing(int signal)
{
    (void)signal;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        errx(2, "usage: kvm_exits port|mmio|halt|kick GUEST");
    const char *kind = argv[1];
    int halts = !strcmp(kind, "halt"), kicks = !strcmp(kind, "kick");
    if (!halts && !kicks && strcmp(kind, "port") && strcmp(kind, "mmio"))
        errx(2, "no such kind: %s", kind);
    make(argv[2]);
    struct sigaction action = { .sa_handler = nothing };
    check(sigaction(SIGUSR1, &action, 0), "sigaction");
    check(pipe(told), "pipe");
    if ((halts || kicks) && pthread_create(&runner, 0, halts ? halting : kicked, 0))
        errx(1, "pthread_create");
    unsigned events;
    while (scanf("%u", &events) == 1) {
        uint64_t ns = halts ? from_here(events, wake) : kicks ? from_here(events, kick) : batch(events);
        printf("%llu\n", (unsigned long long)ns);
        fflush(stdout);
    }
    return 0;
}
