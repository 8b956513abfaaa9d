/* The 64-bit Linux boot protocol enters here: long mode, identity-mapped first GiB, rsi = boot_params. */
    .section .text.entry, "ax"
    .globl _start
_start:
    cli
    cld
    leaq stack_top(%rip), %rsp
    xorl %ebp, %ebp
    movq %rsi, %rdi
    call guest_main
1:  hlt
    jmp 1b

    .section .bss
    .balign 16
    .skip 16384
stack_top:

    .section .note.GNU-stack, "", @progbits
