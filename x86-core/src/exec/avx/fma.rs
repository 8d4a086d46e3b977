//! FMA (Intel SDM vol. 1, 14.5): the digits say which operands are multiplied, which is the host's to know.
#![allow(unsafe_code)] // inline assembly

use super::form::Forms;
use super::raw::rows;

pub(super) fn forms(forms: &mut Forms) {
    rows! { forms, float fused, [(x x x) Single(4), (y y y) Single(8)]:
        Vfmadd132ps Vfmadd213ps Vfmadd231ps Vfmsub132ps Vfmsub213ps Vfmsub231ps
        Vfnmadd132ps Vfnmadd213ps Vfnmadd231ps Vfnmsub132ps Vfnmsub213ps Vfnmsub231ps
        Vfmaddsub132ps Vfmaddsub213ps Vfmaddsub231ps Vfmsubadd132ps Vfmsubadd213ps Vfmsubadd231ps
    }
    rows! { forms, float fused, [(x x x) Double(2), (y y y) Double(4)]:
        Vfmadd132pd Vfmadd213pd Vfmadd231pd Vfmsub132pd Vfmsub213pd Vfmsub231pd
        Vfnmadd132pd Vfnmadd213pd Vfnmadd231pd Vfnmsub132pd Vfnmsub213pd Vfnmsub231pd
        Vfmaddsub132pd Vfmaddsub213pd Vfmaddsub231pd Vfmsubadd132pd Vfmsubadd213pd Vfmsubadd231pd
    }
    rows! { forms, float fused, [(x x x | d) Single(1)]:
        Vfmadd132ss Vfmadd213ss Vfmadd231ss Vfmsub132ss Vfmsub213ss Vfmsub231ss
        Vfnmadd132ss Vfnmadd213ss Vfnmadd231ss Vfnmsub132ss Vfnmsub213ss Vfnmsub231ss
    }
    rows! { forms, float fused, [(x x x | q) Double(1)]:
        Vfmadd132sd Vfmadd213sd Vfmadd231sd Vfmsub132sd Vfmsub213sd Vfmsub231sd
        Vfnmadd132sd Vfnmadd213sd Vfnmadd231sd Vfnmsub132sd Vfnmsub213sd Vfnmsub231sd
    }
}
