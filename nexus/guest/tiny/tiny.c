/*
 * A guest that is up within a millisecond and answers on its serial port.
 *
 * It needs no disk and no network, idles in `sti; hlt`, and holds one number in memory that grows
 * with time, so a snapshot that lost memory or a VM that does not run is seen at once.
 */
#include "machine.h"

#define VECTOR_TIMER 0x30
#define VECTOR_IRQ0 0x20
#define IRQ_KEYBOARD 1
#define IRQ_SERIAL 4
/* KVM's local APIC counts nanoseconds; two ticks a second keep a thousand idle guests at rest. */
#define TICK_NS 500000000U
#define COMMAND_LINE_POINTER 0x228

struct frame {
    u64 rip, cs, rflags, rsp, ss;
};

struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_mid;
    u32 offset_high, reserved;
} __attribute__((packed));

struct table_pointer {
    u16 limit;
    u64 base;
} __attribute__((packed));

static struct gate gates[256] __attribute__((aligned(16)));
static u64 top_gib[512] __attribute__((aligned(4096)));
static volatile u64 count;
/* Ctrl-Alt-Dels still to be ignored: `tiny.deaf` makes a guest that is slow to listen. */
static volatile u64 deaf;

static void put(char c)
{
    outb(SERIAL_DATA, (u8)c);
}

static void print(const char *text)
{
    while (*text)
        put(*text++);
}

static void print_number(u64 value)
{
    char digits[21];
    char *at = digits + sizeof(digits) - 1;

    *at = 0;
    do {
        *--at = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    print(at);
}

static void leave(void)
{
    outb(KEYBOARD_COMMAND, KEYBOARD_RESET);
    for (;;)
        __asm__ volatile("cli; hlt");
}

static void key(char c)
{
    if (c == 'q')
        leave();
    if (c == 'P') {
        print("Kernel panic - not syncing: asked to by a key\r\n");
        leave();
    }
    if (c == 'c') {
        print("count=");
        print_number(count);
        print("\r\n");
    } else if (c == '\r' || c == '\n') {
        print("\r\n");
    } else if (c >= ' ' && c <= '~') {
        put(c);
    }
}

__attribute__((interrupt)) static void on_tick(struct frame *frame)
{
    (void)frame;
    count = count + 1;
    lapic_write(LAPIC_EOI, 0);
}

__attribute__((interrupt)) static void on_serial(struct frame *frame)
{
    (void)frame;
    while (inb(SERIAL_STATUS) & SERIAL_RECEIVED)
        key((char)inb(SERIAL_DATA));
    outb(PIC1_COMMAND, PIC_EOI);
}

/* Delete after an extended prefix is the last key of Ctrl-Alt-Del; nothing else sends one. */
__attribute__((interrupt)) static void on_keyboard(struct frame *frame)
{
    static u8 before;

    (void)frame;
    while (inb(KEYBOARD_COMMAND) & KEYBOARD_FULL) {
        u8 code = inb(KEYBOARD_DATA);

        if (before == SCANCODE_EXTENDED &&
            (code == SCANCODE_DELETE_SET2 || code == SCANCODE_DELETE_SET1)) {
            if (!deaf)
                leave();
            deaf = deaf - 1;
        }
        before = code;
    }
    outb(PIC1_COMMAND, PIC_EOI);
}

/* Devices may interrupt at any time, a restored snapshot does so at once: take it and go on. */
__attribute__((interrupt)) static void on_anything(struct frame *frame)
{
    (void)frame;
    outb(PIC2_COMMAND, PIC_EOI);
    outb(PIC1_COMMAND, PIC_EOI);
    lapic_write(LAPIC_EOI, 0);
}

__attribute__((interrupt)) static void on_fault(struct frame *frame)
{
    print("nexus-tiny fault rip=");
    print_number(frame->rip);
    print("\r\n");
    leave();
}

__attribute__((interrupt)) static void on_fault_with_code(struct frame *frame, u64 code)
{
    print("nexus-tiny fault rip=");
    print_number(frame->rip);
    print(" code=");
    print_number(code);
    print("\r\n");
    leave();
}

static void set_gate(u32 vector, const void *handler)
{
    u64 address = (u64)handler;
    u16 selector;

    __asm__ volatile("movw %%cs, %0" : "=r"(selector));
    gates[vector] = (struct gate){
        .offset_low = (u16)address,
        .selector = selector,
        .type = 0x8e, /* present, 64-bit interrupt gate */
        .offset_mid = (u16)(address >> 16),
        .offset_high = (u32)(address >> 32),
    };
}

static int has_error_code(u32 vector)
{
    return vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 ||
           vector == 29 || vector == 30;
}

static void load_gates(void)
{
    struct table_pointer pointer = {sizeof(gates) - 1, (u64)gates};

    for (u32 vector = 0; vector < 256; vector++) {
        if (vector >= 32 || vector == 2)
            set_gate(vector, on_anything);
        else if (has_error_code(vector))
            set_gate(vector, on_fault_with_code);
        else
            set_gate(vector, on_fault);
    }
    set_gate(VECTOR_TIMER, on_tick);
    set_gate(VECTOR_IRQ0 + IRQ_KEYBOARD, on_keyboard);
    set_gate(VECTOR_IRQ0 + IRQ_SERIAL, on_serial);
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

/* VMMs map only the first GiB; the local APIC is in the fourth: map that one with 2 MiB pages. */
static void map_lapic(void)
{
    u64 root, *pdpt;

    __asm__ volatile("movq %%cr3, %0" : "=r"(root));
    pdpt = (u64 *)(((u64 *)(root & ~0xfffUL))[0] & 0x000ffffffffff000UL);
    for (u64 i = 0; i < 512; i++)
        top_gib[i] = (0xc0000000UL + (i << 21)) | 0x93; /* present, writable, uncached, large */
    pdpt[3] = (u64)top_gib | 0x3;
    __asm__ volatile("movq %0, %%cr3" : : "r"(root) : "memory");
}

static void start_interrupts(void)
{
    outb(PIC1_COMMAND, 0x11);
    outb(PIC2_COMMAND, 0x11);
    outb(PIC1_DATA, VECTOR_IRQ0);
    outb(PIC2_DATA, VECTOR_IRQ0 + 8);
    outb(PIC1_DATA, 4);
    outb(PIC2_DATA, 2);
    outb(PIC1_DATA, 1);
    outb(PIC2_DATA, 1);
    outb(PIC1_DATA, (u8) ~(1 << IRQ_KEYBOARD | 1 << IRQ_SERIAL));
    outb(PIC2_DATA, 0xff);

    lapic_write(LAPIC_SPURIOUS, LAPIC_SOFTWARE_ENABLE | 0xff);
    lapic_write(LAPIC_TIMER_DIVIDE, LAPIC_DIVIDE_BY_16);
    lapic_write(LAPIC_LVT_TIMER, LAPIC_PERIODIC | VECTOR_TIMER);
    lapic_write(LAPIC_TIMER_INITIAL, TICK_NS / 16);

    outb(SERIAL_MODEM_CONTROL, SERIAL_OUT2);
    outb(SERIAL_INTERRUPT_ENABLE, SERIAL_RECEIVED);
}

static u64 times_on(const char *command_line, const char *argument)
{
    u64 found = 0;

    for (; *command_line; command_line++) {
        u64 i = 0;

        while (argument[i] && command_line[i] == argument[i])
            i++;
        found += !argument[i];
    }
    return found;
}

void guest_main(const u8 *boot_params)
{
    u64 pointer = *(const u32 *)(boot_params + COMMAND_LINE_POINTER);
    const char *command_line = pointer ? (const char *)pointer : "";

    deaf = times_on(command_line, "tiny.deaf");
    load_gates();
    map_lapic();
    start_interrupts();
    /* Last, so that whoever reads it may type: a key before the serial port interrupts is lost. */
    print("nexus-tiny ready devices=");
    print_number(times_on(command_line, "virtio_mmio.device="));
    print("\r\n");
    for (;;)
        __asm__ volatile("sti; hlt");
}
