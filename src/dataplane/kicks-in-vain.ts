/** A driver kicks in vain now and then; one that does so more often than this on end is not listened to for a while. */
export const KICKS_IN_VAIN_MAX = 256
/** How long, until what it may have made available meanwhile is looked for. */
export const DEAF_MS = 5
