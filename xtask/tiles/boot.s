# A boot sector: reads what lies behind it on the disk, enters 64-bit mode with vectors and tiles permitted, and calls `main`.
.intel_syntax noprefix
.section .boot, "ax"
.code16
.global start
start:
    xor ax, ax
    mov ds, ax
    mov ss, ax
    mov sp, 0x7c00
read:
    mov si, offset packet
    mov ah, 0x42                        # of the disk that the BIOS left in dl
    int 0x13
    add word ptr [packet + 6], 0x400    # 16 kB further
    add word ptr [packet + 8], 32
    cmp word ptr [packet + 8], 1 + 31 * 32
    jb read

    cli
    in al, 0x92                         # addresses above 1 MB
    or al, 2
    out 0x92, al
    mov ax, 0x9000                      # page tables, of one page: the first gigabyte is where it is
    mov es, ax
    xor eax, eax
    xor di, di
    mov cx, 0x800
    rep stosd
    mov dword ptr es:[0], 0x91003
    mov dword ptr es:[0x1000], 0x83
    mov eax, 0x90000
    mov cr3, eax
    mov eax, 0x40620                    # OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
    mov cr4, eax
    mov ecx, 0xc0000080                 # EFER.LME
    rdmsr
    or ah, 1
    wrmsr
    lgdt [gdt_pointer]
    mov eax, 0x80000013                 # PG, ET, MP, PE
    mov cr0, eax
    ljmp 8, offset long_mode

.code64
long_mode:
    xor ecx, ecx
    xor edx, edx
    mov eax, 0x600e7                    # XCR0: x87, SSE, AVX, AVX-512, and both of the tiles' bits
    xsetbv
    mov esp, 0x9f000
    mov edi, offset bss_start
    mov ecx, offset bss_size
    xor eax, eax
    rep stosb
    call main
halt:
    hlt
    jmp halt

packet:
    .word 16, 32                        # sectors of 512 bytes
    .word 0, 0x7e0                      # to there
    .quad 1                             # from there
.balign 8
gdt:
    .quad 0, 0x00209a0000000000         # 64-bit code
gdt_pointer:
    .word . - gdt - 1
    .long gdt
    .org 510
    .word 0xaa55

# What the compiler calls.
.text
.global memcpy, memset
memcpy:
    mov rax, rdi
    mov rcx, rdx
    rep movsb
    ret
memset:
    mov r8, rdi
    mov eax, esi
    mov rcx, rdx
    rep stosb
    mov rax, r8
    ret
.section .note.GNU-stack
