/* The first program of a guest whose processor is to be known. It tells whether random numbers can be had already,
 * which of the compiler's names for processors fit, and CPUID's words, and powers off:
 *
 *     RANDOM <bytes that getrandom gave at once>
 *     NAME <name>                              one for each that fits
 *     CPUID <leaf> <subleaf> <eax> <ebx> <ecx> <edx>
 *     CLONES <sum>                             of functions that the C library chose by the processor's name
 *     END
 *
 * Whoever compiles it puts a line for each name that the compiler knows where NAMES stands. */

#include <cpuid.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/reboot.h>
#include <unistd.h>

#define LENGTH 100

/* Which version is taken is asked by name, not by what the processor has: each may use all that its name promises. */
#define CLONED \
    __attribute__((noinline, target_clones("default", "arch=haswell", "arch=skylake-avx512", "arch=icelake-server", \
                                           "arch=sapphirerapids", "arch=znver2", "arch=znver3")))

CLONED static void add(float *to, const float *from)
{
    for (int i = 0; i < LENGTH; i++)
        to[i] = to[i] * from[i] + 1;
}

CLONED static long count(const unsigned *from)
{
    long bits = 0;
    for (int i = 0; i < LENGTH; i++)
        bits += __builtin_popcount(from[i]);
    return bits;
}

static void names(void)
{
    __builtin_cpu_init();
/* NAMES */
}

static void tell(unsigned leaf, unsigned subleaf)
{
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx))
        printf("CPUID %x %x %x %x %x %x\n", leaf, subleaf, eax, ebx, ecx, edx);
}

int main(void)
{
    char bytes[16];
    printf("RANDOM %zd\n", getrandom(bytes, sizeof bytes, GRND_NONBLOCK));
    names();
    tell(0, 0);
    tell(1, 0);
    tell(7, 0);
    tell(7, 2);
    tell(0xd, 1);
    tell(0x80000001, 0);
    tell(0x80000007, 0);
    tell(0x80000008, 0);
    tell(0x80000021, 0);

    float to[LENGTH], from[LENGTH], sum = 0;
    unsigned numbers[LENGTH];
    for (int i = 0; i < LENGTH; i++) {
        to[i] = i;
        from[i] = 2;
        numbers[i] = i;
    }
    fflush(stdout);
    add(to, from);
    for (int i = 0; i < LENGTH; i++)
        sum += to[i];
    printf("CLONES %ld\nEND\n", (long)sum + count(numbers));
    fflush(stdout);
    /* Nowhere but in a guest. */
    if (getpid() == 1)
        reboot(RB_POWER_OFF);
    return 0;
}
