/* The few parts of a PC that the tiny guest touches. */
#ifndef MACHINE_H
#define MACHINE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* 8250 serial port, IRQ 4. */
#define SERIAL_DATA 0x3f8
#define SERIAL_INTERRUPT_ENABLE 0x3f9
#define SERIAL_MODEM_CONTROL 0x3fc
#define SERIAL_STATUS 0x3fd
#define SERIAL_RECEIVED 0x01
#define SERIAL_OUT2 0x08 /* the gate of a PC's serial interrupt */

/* i8042 keyboard controller, IRQ 1; a command of 0xfe resets the machine, on which Firecracker exits. */
#define KEYBOARD_DATA 0x60
#define KEYBOARD_COMMAND 0x64
#define KEYBOARD_FULL 0x01
#define KEYBOARD_RESET 0xfe
#define SCANCODE_EXTENDED 0xe0
#define SCANCODE_DELETE_SET2 0x71
#define SCANCODE_DELETE_SET1 0x53

/* i8259 interrupt controllers. */
#define PIC1_COMMAND 0x20
#define PIC1_DATA 0x21
#define PIC2_COMMAND 0xa0
#define PIC2_DATA 0xa1
#define PIC_EOI 0x20

/* Local APIC, memory-mapped. */
#define LAPIC_BASE 0xfee00000UL
#define LAPIC_EOI 0x0b0
#define LAPIC_SPURIOUS 0x0f0
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_TIMER_INITIAL 0x380
#define LAPIC_TIMER_DIVIDE 0x3e0
#define LAPIC_SOFTWARE_ENABLE 0x100
#define LAPIC_PERIODIC 0x20000
#define LAPIC_DIVIDE_BY_16 0x3

static inline void outb(u16 port, u8 value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline u8 inb(u16 port)
{
    u8 value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline void lapic_write(u32 reg, u32 value)
{
    *(volatile u32 *)(LAPIC_BASE + reg) = value;
}

#endif
