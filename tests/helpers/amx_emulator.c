/* The instructions of AMX that the kernel uses, for a CPU that has none: loaded by LD_PRELOAD, they run when the CPU refuses them
 * (SIGILL). Also Linux's permission to use them: given, or with AMX_EMULATOR_REFUSES in the environment refused. Written after
 * Intel's manual, volume 2; knows nothing of LSTMs.
 *
 *     gcc -O2 -mfma -ffp-contract=off -shared -fPIC -o amx_emulator.so amx_emulator.c
 */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

enum { TILES = 8, ROWS = 16, BYTES = 64 };
static __thread struct { int used, rows[TILES], bytes[TILES]; uint8_t data[TILES][ROWS][BYTES]; } amx;

static void fail(const char *why) {
    fprintf(stderr, "AMX emulator: %s\n", why);
    abort();
}

static float number(const uint8_t *half) { /* a bfloat16 as a float32 */
    uint32_t bits = (uint32_t)half[0] << 16 | (uint32_t)half[1] << 24;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void check(int tile) {
    if (!amx.used || !amx.rows[tile]) fail("a register without rows");
}

static void multiply(int sums, int a, int b) {
    check(sums), check(a), check(b);
    if (sums == a || sums == b || a == b) fail("one register twice");
    if (amx.rows[sums] != amx.rows[a] || amx.bytes[sums] != amx.bytes[b] || amx.bytes[a] != 4 * amx.rows[b]) fail("shapes");
    for (int row = 0; row < amx.rows[a]; row++)
        for (int column = 0; column < amx.bytes[b] / 4; column++) {
            float even = 0, odd = 0, *sum = (float *)amx.data[sums][row] + column;
            for (int k = 0; k < amx.rows[b]; k++) {
                uint8_t *left = amx.data[a][row] + 4 * k, *right = amx.data[b][k] + 4 * column;
                even = fmaf(number(left), number(right), even);
                odd = fmaf(number(left + 2), number(right + 2), odd);
            }
            *sum += even + odd;
        }
}

static uint64_t get(ucontext_t *context, int number) {
    static const int places[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return context->uc_mcontext.gregs[places[number]];
}

static void handle(int signal, siginfo_t *info, void *state) {
    (void)signal, (void)info;
    ucontext_t *context = state;
    uint8_t *at = (uint8_t *)context->uc_mcontext.gregs[REG_RIP], *next = at + 5;
    if (at[0] != 0xC4 || (at[1] & 0x1F) != 2 || (at[2] & 0x84)) fail("another instruction that this CPU does not have");
    int x = !(at[1] & 0x40) << 3, b = !(at[1] & 0x20) << 3, prefix = at[2] & 3, third = ~at[2] >> 3 & 7, code = at[3];
    int mode = at[4] >> 6, reg = at[4] >> 3 & 7, rm = at[4] & 7;
    uint64_t address = 0, stride = 0;
    _mm_setcsr(0x9FC0); /* to nearest; subnormal numbers count as zero, in and out */
    if (mode != 3) {
        int has_base = 1, base = rm;
        if (rm == 4) {
            int scale = *next >> 6, index = *next >> 3 & 7;
            base = *next++ & 7;
            if (index + x != 4) stride = get(context, index + x) << scale;
        }
        if (mode == 0 && base == 5) has_base = 0;
        int32_t offset = 0;
        if (mode == 1) offset = *(int8_t *)next++;
        else if (mode == 2 || !has_base) memcpy(&offset, next, 4), next += 4;
        address = (has_base ? get(context, base + b) : rm == 5 ? (uint64_t)next : 0) + offset;
    }
    if (code == 0x49 && prefix == 0 && mode != 3) { /* LDTILECFG */
        const uint8_t *table = (uint8_t *)(address + stride);
        memset(&amx, 0, sizeof amx);
        if (table[0] > 1) fail("palette");
        for (int tile = 0; table[0] && tile < TILES; tile++) {
            amx.used = 1, amx.rows[tile] = table[48 + tile], amx.bytes[tile] = table[16 + 2 * tile] | table[17 + 2 * tile] << 8;
            if (amx.rows[tile] > ROWS || amx.bytes[tile] > BYTES) fail("too large");
        }
    } else if (code == 0x49 && prefix == 0 && at[4] == 0xC0) { /* TILERELEASE */
        memset(&amx, 0, sizeof amx);
    } else if (code == 0x49 && prefix == 3 && mode == 3) { /* TILEZERO */
        check(reg);
        memset(amx.data[reg], 0, sizeof amx.data[reg]);
    } else if (code == 0x4B && prefix == 3 && rm == 4) { /* TILELOADD */
        check(reg);
        memset(amx.data[reg], 0, sizeof amx.data[reg]);
        for (int row = 0; row < amx.rows[reg]; row++) memcpy(amx.data[reg][row], (void *)(address + row * stride), amx.bytes[reg]);
    } else if (code == 0x4B && prefix == 2 && rm == 4) { /* TILESTORED */
        check(reg);
        for (int row = 0; row < amx.rows[reg]; row++) memcpy((void *)(address + row * stride), amx.data[reg][row], amx.bytes[reg]);
    } else if (code == 0x5C && prefix == 2 && mode == 3) { /* TDPBF16PS */
        multiply(reg, rm, third);
    } else {
        fail("an instruction of AMX that is not emulated");
    }
    context->uc_mcontext.gregs[REG_RIP] = (greg_t)next;
}

long syscall(long number, ...) {
    va_list list;
    va_start(list, number);
    register long a __asm__("rdi") = va_arg(list, long), b __asm__("rsi") = va_arg(list, long), c __asm__("rdx") = va_arg(list, long);
    register long d __asm__("r10") = va_arg(list, long), e __asm__("r8") = va_arg(list, long), f __asm__("r9") = va_arg(list, long);
    va_end(list);
    long result;
    if (number == 158 && a == 0x1023) result = b != 18 || getenv("AMX_EMULATOR_REFUSES") ? -EINVAL : 0; /* arch_prctl */
    else __asm__ volatile("syscall" : "=a"(result) : "a"(number), "r"(a), "r"(b), "r"(c), "r"(d), "r"(e), "r"(f) : "rcx", "r11", "memory");
    if (result >= 0 || result < -4095) return result;
    errno = -result;
    return -1;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, NULL);
}
